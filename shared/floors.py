"""Rules without a model that every next-road accuracy is held against: one name for people, wherever they are told."""

from __future__ import annotations

RULES = {
    "nearest_to_destination": "the candidate nearest to the destination",
    "first_order_markov": "the most frequent next road",
    "second_order_markov": "the most frequent next road after the last two",
}
"""By their names in files: of a store's manifest under `floors`, of evaluations and of teachers' provenance."""
COUNTED = ("first_order_markov", "second_order_markov")
"""Those that know the training split."""
