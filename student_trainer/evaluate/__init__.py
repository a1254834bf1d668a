"""How good generated trips, and predictions of the next road, are."""
