"""Answers: what is in flight and what is remembered, so that nothing is computed twice."""
