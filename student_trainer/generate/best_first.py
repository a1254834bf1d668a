"""Best-first search: always the path with the highest log-probability goes on, until one arrives.

With repeats=never or any it is exact: a path's log-probability only falls as it grows, so the first to be taken up at
the destination is the most probable of all (loop-free, or any) paths, whatever the student's probabilities depend on.
With repeats=best, upstream's rule, a road goes on only once, from the first path taken up there. That is exact where a
step's probability depends on the road and the destination alone, not on the path before; the student's does depend on
it, and the rule is then a good and much cheaper approximation.

heuristic=bound puts a lower bound of what is left beside what a path has cost: the least sum, over all ways to the
destination, of the least -log p that the student can give a step of it after any path (`least_costs`). It never
exceeds what is left, so what is exact without it is exact with it, and no more is expanded. The bound needs a pass over
all roads for every trip.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from shared import ragged
from shared.arrays import Float64, Int64
from student_trainer.data import graph
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.found import Found
from student_trainer.generate.lanes import NOWHERE, Lanes
from student_trainer.generate.pairs import Pairs
from student_trainer.model.steps import StepTable
from student_trainer.model.student import Decoder

TABLE_STEPS = 200_000
"""No further trip starts while so many steps are kept: with a HOSER of the default widths some 4 KiB each."""

ROUNDING = 1e-5
"""By how much the bound is lowered, relatively and absolutely, so that it holds for rounded logits too."""

Open = tuple[float, int, float, int, int, int]
"""Cost, number in the order of discovery, log-probability, road, place of the step before, steps."""


class BestFirstSearch:
    """Searches for many trips at once; each goes on from one path a round."""

    def __init__(self, student: Decoder, pairs: Pairs, settings: SearchConfig, lanes: int) -> None:
        self._student, self._pairs, self._settings = student, pairs, settings
        self._count = lanes

    def run(self, todo: Iterable[int]) -> Iterator[Found]:
        """The trips of these pairs, none of which begins where it ends, in the order in which they are found."""
        self._table = self._student.table()
        self._lanes = Lanes(self._count, self._pairs, todo, self._student.network)
        self._trees: dict[int, _Tree] = {}
        while True:
            for lane in self._lanes.admit(self._count if self._table.used < TABLE_STEPS else not self._trees):
                self._trees[int(lane)] = self._plant(int(lane))
            if not self._trees:
                return
            yield from self._go_on()

    def _plant(self, lane: int) -> _Tree:
        origin, destination = int(self._lanes.origin[lane]), int(self._lanes.destination[lane])
        left = None
        if self._settings.heuristic == "bound":
            candidates, cost = self._student.least_costs(destination)
            exact = graph.costs_to(destination, candidates.length, candidates.road, cost)
            left = np.maximum(exact * (1 - ROUNDING) - ROUNDING, 0)
        return _Tree(origin, self._settings.repeats == "best", left)

    def _go_on(self) -> Iterator[Found]:
        """Takes one path up in every trip."""
        lanes, table, settings = self._lanes, self._table, self._settings
        taken: list[tuple[int, Open]] = []
        for number, tree in list(self._trees.items()):
            path = tree.pop()
            if path is not None and len(tree.places) < settings.max_expanded:
                taken.append((number, path))
                continue
            lanes.by_steps[number] |= path is not None
            yield self._end(number, lanes.failed(number, table))
        lane = np.array([number for number, _ in taken], np.int64)
        log_prob = np.array([path[2] for _, path in taken], np.float64)
        road, before, steps = np.array([path[3:] for _, path in taken], np.int64).reshape(-1, 3).T
        time = self._times(lane, road, before)
        late = time - lanes.departure[lane] > settings.max_seconds
        lanes.by_time[lane[late]] = True
        there = ~late & (road == lanes.destination[lane])
        for i in np.flatnonzero(there):
            roads, times = table.roads_and_times(int(before[i]))
            found = lanes.arrived(
                int(lane[i]), np.append(roads, road[i]), np.append(times, time[i]), float(log_prob[i])
            )
            yield self._end(int(lane[i]), found)
        goes_on = ~late & ~there
        if not goes_on.any():
            return
        lane, road, before, steps = lane[goes_on], road[goes_on], before[goes_on], steps[goes_on]
        place = table.take(len(lane))
        table.parent[place], table.road[place] = before, road
        table.time[place], table.log_prob[place] = time[goes_on], log_prob[goes_on]
        for number, one in zip(lane, place, strict=True):
            self._trees[int(number)].places.append(int(one))
        self._expand(lane, place, steps)

    def _times(self, lane: Int64, road: Int64, before: Int64) -> Int64:
        """When the paths enter their last roads."""
        time = self._lanes.departure[lane]
        goes_on = before >= 0
        before = before[goes_on]
        time[goes_on] = self._table.time[before] + self._student.seconds(self._table, before, road[goes_on])
        return time

    def _expand(self, lane: Int64, place: Int64, steps: Int64) -> None:
        lanes, table, settings = self._lanes, self._table, self._settings
        candidates, log_prob = self._student.advance(
            table, place, steps + 1, lanes.weekend[lane], lanes.destination[lane]
        )
        lanes.note(lane, place, table.road[place])
        lanes.by_steps[lane[steps == settings.max_steps]] = True
        log_prob += np.repeat(table.log_prob[place], candidates.length)
        ends = ragged.offsets(candidates.length)
        for row in np.flatnonzero(steps < settings.max_steps):
            roads = candidates.road[ends[row] : ends[row + 1]].tolist()
            values = log_prob[ends[row] : ends[row + 1]].tolist()
            closed = _roads_of(table, int(place[row])) if settings.repeats == "never" else ()
            tree = self._trees[int(lane[row])]
            for road, value in zip(roads, values, strict=True):
                if road not in closed:
                    tree.push(value, road, int(place[row]), int(steps[row]) + 1)

    def _end(self, lane: int, found: Found) -> Found:
        self._table.release(np.array(self._trees.pop(lane).places, np.int64))
        return found


class _Tree:
    """The paths of one trip: those that may go on, and the places of the steps that have.

    With `left`, float64 [N], a lower bound of what is left from each road, the least sum goes on first.

    Attributes:
        places: of all steps that are kept.
    """

    def __init__(self, origin: int, once: bool, left: Float64 | None) -> None:
        self.places: list[int] = []
        self._once, self._left = once, left
        self._order = itertools.count()
        self._open: list[Open] = []
        self._best: dict[int, float] = {}
        self._closed: set[int] = set()
        self.push(0.0, origin, NOWHERE, 0)

    def push(self, log_prob: float, road: int, before: int, steps: int) -> None:
        """Opens a path to a road, unless one that is open there is at least as probable."""
        if self._once:
            if road in self._closed or log_prob <= self._best.get(road, -np.inf):
                return
            self._best[road] = log_prob
        cost = -log_prob if self._left is None else float(self._left[road]) - log_prob
        heapq.heappush(self._open, (cost, next(self._order), log_prob, road, before, steps))

    def pop(self) -> Open | None:
        """The most probable open path, the earliest of equals; None without one."""
        while self._open:
            path = heapq.heappop(self._open)
            if path[3] not in self._closed:
                if self._once:
                    self._closed.add(path[3])
                return path
        return None


def _roads_of(table: StepTable, place: int) -> set[int]:
    return set(table.roads_and_times(place)[0].tolist())
