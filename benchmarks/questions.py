"""Questions to a teacher, cut from a store's trips or drawn at random, as arrays: nothing is built a trip at a time.

Shapes: H scored positions of n trips back to back, K candidates of theirs back to back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.store import Store, Trips
from shared.wire import HistoryMode, ScoreQuery

RANDOM_TRIP, RANDOM_CANDIDATES = 32, 3
"""Cells of a random trip and candidates of each of its positions: about as real ones have them."""

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, eq=False)
class Positions:
    """Scored positions of trips: what a trainer asks about them.

    Attributes:
        cells: int32 [H] cell of every road but a trip's last.
        lengths: int64 [n] positions of a trip.
        candidates: int32 [K] cells of the successors.
        candidate_lengths: int64 [H].
    """

    cells: Int32
    lengths: Int64
    candidates: Int32
    candidate_lengths: Int64

    def __post_init__(self) -> None:
        object.__setattr__(self, "trip_offsets", ragged.offsets(self.lengths))
        object.__setattr__(self, "candidate_offsets", ragged.offsets(self.candidate_lengths))
        object.__setattr__(self, "step", ragged.positions(self.lengths))

    trip_offsets: Int64 = dataclasses.field(init=False)
    candidate_offsets: Int64 = dataclasses.field(init=False)
    step: Int64 = dataclasses.field(init=False)

    def __len__(self) -> int:
        return len(self.cells)

    def windows(self, first: int, count: int, window: int) -> ScoreQuery:
        """WINDOW mode: the positions `first` ... `first + count - 1`, one row each, of the last `window` cells."""
        chosen = np.arange(first, first + count)
        length = np.minimum(self.step[chosen] + 1, window)
        rows = self.cells[ragged.slices(chosen + 1 - length, length)]
        candidates, lengths = self._candidates(first, count)
        return ScoreQuery(HistoryMode.WINDOW, rows, length.astype(np.int32), candidates, lengths)

    def trips(self, first: int, count: int, window: int) -> ScoreQuery:
        """SEQUENCE mode: the trips `first` ... `first + count - 1`, whole; window 0 for the whole history."""
        start, end = int(self.trip_offsets[first]), int(self.trip_offsets[first + count])
        candidates, lengths = self._candidates(start, end - start)
        rows = self.lengths[first : first + count].astype(np.int32)
        return ScoreQuery(HistoryMode.SEQUENCE, self.cells[start:end], rows, candidates, lengths, window)

    def _candidates(self, first: int, count: int) -> tuple[Int32, Int32]:
        inside = slice(self.candidate_offsets[first], self.candidate_offsets[first + count])
        return self.candidates[inside], self.candidate_lengths[first : first + count].astype(np.int32)


def of_trips(store: Store, trips: Trips, first: int = 0, count: int | None = None) -> Positions:
    """The positions of trips `first` ... of a split: the cells of their roads, and of every road's successors."""
    chosen = trips.take(np.arange(first, len(trips) if count is None else min(first + count, len(trips))))
    token, successors, offsets = (store.network(n) for n in ("road_token", "successors", "successor_offsets"))
    lengths = chosen.lengths - 1
    road = chosen.roads[ragged.slices(chosen.offsets[:-1], lengths)].astype(np.int64)
    candidate_lengths = np.diff(offsets)[road]
    candidates = token[successors[ragged.slices(offsets[road], candidate_lengths)]]
    return Positions(token[road], lengths, candidates, candidate_lengths)


def at_random(cells: int, count: int, random: np.random.Generator) -> Positions:
    """At least `count` positions of trips of random cells with random candidates: nobody has seen them before."""
    trips = -(-count // RANDOM_TRIP)
    size = trips * RANDOM_TRIP
    return Positions(
        cells=random.integers(cells, size=size, dtype=np.int32),
        lengths=np.full(trips, RANDOM_TRIP),
        candidates=random.integers(cells, size=size * RANDOM_CANDIDATES, dtype=np.int32),
        candidate_lengths=np.full(size, RANDOM_CANDIDATES),
    )


def requests(positions: Positions, size: int, mode: HistoryMode, window: int) -> Iterator[ScoreQuery]:
    """Requests of `size` positions each, in order, once through.

    WINDOW: exactly so many, a rest is left out. SEQUENCE: whole trips, at least one, until there are so many.
    """
    if mode is HistoryMode.WINDOW:
        for first in range(0, len(positions) - size + 1, size):
            yield positions.windows(first, size, window)
        return
    first = 0
    while first < len(positions.lengths):
        reached = np.searchsorted(positions.trip_offsets, positions.trip_offsets[first] + size)
        last = min(int(reached), len(positions.lengths))
        yield positions.trips(first, max(last - first, 1), window)
        first = max(last, first + 1)


def endless(cells: int, size: int, mode: HistoryMode, window: int, seed: int) -> Iterator[ScoreQuery]:
    """Requests that are never repeated, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield from requests(at_random(cells, size, random), size, mode, window)
