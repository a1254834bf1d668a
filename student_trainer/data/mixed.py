"""Labelled trips and trips sampled from the teacher, numbered through: what a run trains on."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from shared import ragged
from shared.arrays import Int64
from shared.store import Trips


class Numbered(Protocol):
    """Trips that are taken by their numbers."""

    def lengths_of(self, trips: Int64) -> Int64:
        """Roads of each of the given trips: int64, as `trips`."""
        ...

    def take(self, trips: Int64) -> Trips:
        """The given trips, in the given order, in memory."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class MixedTrips:
    """The labelled trips keep their numbers; the sampled ones follow.

    Attributes:
        labelled: a split.
        sampled: as `data.sampled` reads them.
    """

    labelled: Trips
    sampled: Trips

    @property
    def first_sampled(self) -> int:
        """The number of the first sampled trip."""
        return len(self.labelled)

    def lengths_of(self, trips: Int64) -> Int64:
        """See `Numbered`."""
        is_sampled = trips >= self.first_sampled
        lengths = np.empty(len(trips), np.int64)
        lengths[~is_sampled] = self.labelled.lengths_of(trips[~is_sampled])
        lengths[is_sampled] = self.sampled.lengths_of(trips[is_sampled] - self.first_sampled)
        return lengths

    def take(self, trips: Int64) -> Trips:
        """See `Numbered`."""
        is_sampled = trips >= self.first_sampled
        parts = (
            self.labelled.take(trips[~is_sampled]),
            self.sampled.take(trips[is_sampled] - self.first_sampled),
        )
        together = Trips(
            roads=np.concatenate([part.roads for part in parts]),
            times=np.concatenate([part.times for part in parts]),
            offsets=ragged.offsets(np.concatenate([part.lengths for part in parts])),
            source_rows=np.concatenate([part.source_rows for part in parts]),
        )
        place = np.empty(len(trips), np.int64)
        place[np.argsort(is_sampled, kind="stable")] = np.arange(len(trips))
        return together.take(place)
