"""What some trips show that others do not: their turns, three roads that follow each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Int64
from shared.store import Trips


def unseen_share(seen: Trips, other: Trips) -> float:
    """Share of the turns of `other`, each as often as it is taken, that no trip of `seen` takes; 0 without turns.

    A turn is three roads of a trip that follow each other.
    """
    turns, known = np.concatenate([_turns(seen), _turns(other)]), int(np.maximum(seen.lengths - 2, 0).sum())
    if known == len(turns):
        return 0.0
    number = turns[:, 0].astype(np.int64)
    for road in turns[:, 1:].T.astype(np.int64):  # numbered anew for each road, so that no product overflows
        number = np.unique(number * (road.max() + 1) + road, return_inverse=True)[1]
    return float(np.mean(~np.isin(number[known:], number[:known])))


def _turns(trips: Trips) -> npt.NDArray[np.int32]:
    """int32 [n, 3]."""
    lengths = np.maximum(trips.lengths - 2, 0)
    first: Int64 = ragged.slices(trips.offsets[:-1], lengths)
    return np.stack([trips.roads[first + place] for place in range(3)], axis=1)
