"""The trips that a search has under way: each in a lane, which the next trip takes when it has ended. L lanes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from shared.arrays import Int64
from student_trainer.data import geometry
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import kernels
from student_trainer.generate.found import Found, Status
from student_trainer.generate.pairs import Pairs
from student_trainer.model.steps import StepTable

NOWHERE = -1


class Lanes:
    """What is known of the trips under way.

    Attributes:
        pair: int64 [L].
        origin, destination, departure: int64 [L] of the pair; weekend: bool [L].
        expanded: int64 [L] steps computed.
        by_steps, by_time: bool [L] whether a path was cut off for its steps, for its travel time.
        nearest: int64 [L] place of the step that is nearest to the destination; metres: float64 [L] how near.
    """

    def __init__(self, count: int, pairs: Pairs, todo: Iterable[int], network: RoadNetwork) -> None:
        self._pairs, self._network = pairs, network
        self._queue = iter(todo)
        self._free = list(range(count))[::-1]
        self.pair, self.origin, self.destination, self.departure, self.expanded, self.nearest = np.zeros(
            (6, count), np.int64
        )
        self.weekend, self.by_steps, self.by_time = np.zeros((3, count), np.bool_)
        self.metres = np.zeros(count)
        self.nearest[:] = NOWHERE

    def admit(self, most: int) -> Int64:
        """Lets up to `most` trips start; returns their lanes."""
        pair = np.fromiter(itertools.islice(self._queue, min(most, len(self._free))), np.int64)
        lane = np.array([self._free.pop() for _ in pair], np.int64)
        self.pair[lane] = pair
        self.origin[lane], self.destination[lane] = self._pairs.origin[pair], self._pairs.destination[pair]
        self.departure[lane], self.weekend[lane] = self._pairs.departure[pair], self._pairs.weekend[pair]
        self.expanded[lane], self.by_steps[lane], self.by_time[lane] = 0, False, False
        self.nearest[lane], self.metres[lane] = NOWHERE, np.inf
        return lane

    def note(self, lane: Int64, place: Int64, road: Int64) -> None:
        """Counts steps [R] that are computed, and keeps the nearest to the destination."""
        np.add.at(self.expanded, lane, 1)
        point, goal = self._network.line_centroid[road], self._network.line_centroid[self.destination[lane]]
        distance = geometry.haversine_m(point[:, 0], point[:, 1], goal[:, 0], goal[:, 1])
        kernels.keep_nearest(self.nearest, self.metres, lane, place, distance)

    def arrived(self, lane: int, roads: Int64, times: Int64, log_prob: float | None) -> Found:
        """Ends a trip at its destination."""
        return self._end(lane, "arrived", roads, times, log_prob)

    def failed(self, lane: int, table: StepTable, has_choice: bool = True) -> Found:
        """Ends a trip that no path can go on; says why, and gives the path that came nearest."""
        status: Status = "step_limit" if self.by_steps[lane] else "time_limit" if self.by_time[lane] else "dead_end"
        place = int(self.nearest[lane])
        log_prob = float(table.log_prob[place]) if has_choice else None
        return self._end(lane, status, *table.roads_and_times(place), log_prob)

    def _end(self, lane: int, status: Status, roads: Int64, times: Int64, log_prob: float | None) -> Found:
        self._free.append(lane)
        self.nearest[lane] = NOWHERE
        return Found(int(self.pair[lane]), status, roads, times, log_prob, int(self.expanded[lane]))
