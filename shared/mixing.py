"""Numbers that stand for others as if drawn by chance: for hashes that must be the same everywhere."""

from __future__ import annotations

import numpy as np

from shared.arrays import UInt64


def mix(values: UInt64) -> UInt64:
    """Spreads every bit over all 64: the output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
