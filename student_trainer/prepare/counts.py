"""What the trips of a split have in common: how often transitions, pairs of transitions and travel times occur.

Whole numbers, so it does not matter in which order, or in what blocks, trips are counted. Floors, collisions, the flow
between zones and the target's statistics are computed from these counts, and not from the steps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from shared import ragged
from shared.arrays import Int64
from shared.store import Trips
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import step_index, steps_of
from student_trainer.prepare.workers import Workers


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Of a split with P steps over S transitions.

    Attributes:
        transition: int64 [S] how often each was taken; P = sum.
        pair: int64 [Q] how often one was taken right after another: transition by transition, for each those that start
            from the road that it leads to, in their order.
        seconds: int64 [T] the travel times that occur, ascending.
        seconds_count: int64 [T] how often.
    """

    transition: Int64
    pair: Int64
    seconds: Int64
    seconds_count: Int64

    @property
    def steps(self) -> int:
        """P."""
        return int(self.transition.sum())


def pair_offsets(successors: Successors) -> Int64:
    """Where the pairs that begin with each transition begin in `Counts.pair`: int64 [S + 1]."""
    return ragged.offsets(successors.degree[successors.roads])


def count(
    blocks: Iterable[Trips],
    successors: Successors,
    workers: Workers,
    advance: Callable[[int], object] = lambda roads: None,
) -> Counts:
    """Counts usable trips; `advance` is told the roads of each block that is done."""
    offsets = pair_offsets(successors)
    transition, pair = np.zeros(len(successors.roads), np.int64), np.zeros(int(offsets[-1]), np.int64)
    seconds: Counter[int] = Counter()

    def count_block(trips: Trips) -> tuple[Int64, Int64, Int64, Int64, int]:
        steps = steps_of(trips, successors)
        index = step_index(trips.offsets)
        follows = steps.previous_transition >= 0
        inside = steps.transition[follows] - successors.offsets[steps.road[follows]]
        times, how_often = np.unique(trips.times[index + 1] - trips.times[index], return_counts=True)
        pairs = offsets[steps.previous_transition[follows]] + inside
        return steps.transition, pairs, times, how_often, len(trips.roads)

    for taken, followed, times, how_often, roads in workers.in_order(count_block, blocks):
        transition += np.bincount(taken, minlength=len(transition))
        pair += np.bincount(followed, minlength=len(pair))
        seconds.update(dict(zip(times.tolist(), how_often.tolist(), strict=True)))
        advance(roads)
    found = sorted(seconds)
    return Counts(transition, pair, np.array(found, np.int64), np.array([seconds[value] for value in found], np.int64))
