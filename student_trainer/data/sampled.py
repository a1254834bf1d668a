"""Placeholder until the sampler's reader is merged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from shared.store import Store, Trips


def load_sampled(path: Path, store: Store) -> Trips:
    """Reads them."""
    return Trips(**{field.name: np.load(path / f"{field.name}.npy") for field in dataclasses.fields(Trips)})
