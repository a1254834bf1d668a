"""OD pairs: origin, destination and departure of trips of a split."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from shared.arrays import Bool, Int64
from shared.errors import DataError
from shared.store import Trips
from student_trainer.data.batch import is_weekend

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Q OD pairs, each of a real trip.

    Attributes:
        trip: int64 [Q] index of the trip in its split; row: int64 [Q] its row in the CSV file.
        origin, destination: int64 [Q] roads.
        departure: int64 [Q] the trip's first time, seconds.
    """

    trip: Int64
    row: Int64
    origin: Int64
    destination: Int64
    departure: Int64

    def __len__(self) -> int:
        return len(self.trip)

    @property
    def weekend(self) -> Bool:
        """bool [Q]: whether the departure is at one."""
        return is_weekend(self.departure)


def draw(trips: Trips, count: int, seed: int, split: str) -> Pairs:
    """OD pairs of `count` trips, drawn without replacement, or of all if there are fewer; 0: of all, in their order.

    The same split, count and seed give the same pairs; a longer draw begins with a shorter one.

    Raises:
        DataError: the split has no trips.
    """
    if not len(trips):
        raise DataError(f"the {split} split has no trips, so there are no OD pairs to generate for")
    if count > len(trips):
        log.info("the %s split has %d trips, fewer than pairs=%d: OD pairs of all of them", split, len(trips), count)
    trip = np.random.default_rng(seed).permutation(len(trips))[:count] if count else np.arange(len(trips))
    first, last = trips.offsets[trip], trips.offsets[trip + 1] - 1
    return Pairs(
        trip=trip.astype(np.int64),
        row=trips.source_rows[trip].astype(np.int64),
        origin=trips.roads[first].astype(np.int64),
        destination=trips.roads[last].astype(np.int64),
        departure=trips.times[first].astype(np.int64),
    )
