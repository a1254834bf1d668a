"""Predictions of a student over a split. Using a student imports no training."""
