"""Which trips of a split a job may use: all, or a sample that several jobs share."""

from __future__ import annotations

import numpy as np

from shared.arrays import Int64
from shared.errors import ConfigError
from shared.store import Trips


def choose(trips: Trips, wanted: int, seed: int, setting: str, kind: str) -> Int64:
    """All trips, or a sample of them that depends on its size and seed alone: int64 [n], ascending.

    Args:
        trips: of a split.
        wanted: so many; 0 for all.
        seed: of the sample.
        setting, kind: what `wanted` is called, and the split, for people.

    Raises:
        ConfigError: there are fewer than wanted.
    """
    if wanted > len(trips):
        raise ConfigError(f"{setting} is {wanted}, but the store has {len(trips)} {kind} trips")
    if not wanted:
        return np.arange(len(trips))
    return draw(len(trips), wanted, seed)


def draw(count: int, wanted: int, seed: int) -> Int64:
    """A sample of the numbers 0 to `count` - 1, at most `wanted` of them: int64, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def evenly(count: int, most: int) -> Int64:
    """At most so many of the numbers 0 to `count` - 1, equally far apart: int64, ascending."""
    return np.arange(0, count, max(1, -(-count // most)))
