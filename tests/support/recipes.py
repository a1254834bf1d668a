"""Settings of distillation that tests of a whole run are made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.store import Store
from support.random_city import write_random_sample

HISTORY: dict[str, Any] = {"weight": 0.3, "target": "history", "head": 0.0, "schedule": "constant"}
"""The teacher's answer as it is, with a constant weight: what there was before the other parts."""
EVERYTHING: dict[str, Any] = {"sampled_weight": 0.5, "sampled_labels": 0.75, "schedule_share": 0.8}
"""With sampled trips, whose weights are their own, and such as float32 holds; the rest is the default."""


def variants(folder: Path, store: Store) -> dict[str, dict[str, Any]]:
    """Sections of a recipe, by name: the default, all of its parts with sampled trips, and `HISTORY`.

    Args:
        folder: where sampled trips are written.
        store: which they are of.
    """
    sampled = write_random_sample(folder / "sampled", store)
    return {
        "default": {},
        "sampled": {"batch": {"sampled": sampled, "sampled_trips": 25}, "distill": EVERYTHING},
        "history": {"distill": HISTORY},
    }
