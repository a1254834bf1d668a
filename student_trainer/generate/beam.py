"""Beam search, greedy included (one beam, first to arrive).

At each depth, the candidates of all beams of a trip compete by log-probability for its `width` places. A path that
arrives takes a place at the depth where it arrives, and is finished; the others go on. With finish=normalised the
finished compete by log-probability / steps^power, and beams whose own score is not higher than the best finished one's
are given up: for power 0 nothing is lost by that, as log-probabilities only fall; for others it is the usual rule, and
a beam could in principle have recovered by many nearly certain steps. The search of a trip ends without beams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from shared import ragged
from shared.arrays import Float64, Int64
from student_trainer.generate import kernels
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.found import Found
from student_trainer.generate.lanes import Lanes
from student_trainer.generate.pairs import Pairs
from student_trainer.model.student import Decoder

Finished = tuple[float, Int64, Int64, float]
"""Score, roads, times, log-probability."""

RULES = {"any": kernels.ANY, "never": kernels.NEVER, "best": kernels.BEST}


class BeamSearch:
    """Searches for many trips at once, one depth of each in every round."""

    def __init__(self, student: Decoder, pairs: Pairs, settings: SearchConfig, lanes: int) -> None:
        self._student, self._pairs, self._settings = student, pairs, settings
        self._count = lanes

    def run(self, todo: Iterable[int]) -> Iterator[Found]:
        """The trips of these pairs, none of which begins where it ends, in the order in which they are found."""
        settings, student = self._settings, self._student
        self._table = student.table()
        self._lanes = Lanes(self._count, self._pairs, todo, student.network)
        rule = settings.repeats == "best"
        self._best = np.full((self._count, student.network.num_roads if rule else 1), -np.inf)
        self._finished: dict[int, Finished] = {}
        self._least = np.full(self._count, -np.inf)
        # of each beam: its lane, the place of its last step and its number of steps; beams of a lane are neighbours
        self._lane, self._place, self._length = np.empty((3, 0), np.int64)
        while True:
            self._start()
            if not len(self._lane):
                return
            yield from self._go_on()

    def _start(self) -> None:
        lanes, table = self._lanes, self._table
        lane = lanes.admit(self._count)
        place = self._take(len(lane))
        table.parent[place], table.road[place] = -1, lanes.origin[lane]
        table.time[place], table.log_prob[place] = lanes.departure[lane], 0
        self._best[lane] = -np.inf
        if self._settings.repeats == "best":
            self._best[lane, lanes.origin[lane]] = 0
        self._least[lane] = -np.inf
        self._lane = np.concatenate([self._lane, lane])
        self._place = np.concatenate([self._place, place])
        self._length = np.concatenate([self._length, np.ones(len(lane), np.int64)])

    def _go_on(self) -> Iterator[Found]:
        lanes, table, settings = self._lanes, self._table, self._settings
        of, road, log_prob = self._choose()
        lane, before, steps = self._lane[of], self._place[of], self._length[of]
        time = table.time[before] + self._student.seconds(table, before, road)
        late = time - lanes.departure[lane] > settings.max_seconds
        lanes.by_time[lane[late]] = True
        there = ~late & (road == lanes.destination[lane])
        for i in np.flatnonzero(there):
            self._finish(int(lane[i]), int(before[i]), int(road[i]), int(time[i]), float(log_prob[i]))
        goes_on = ~late & ~there
        if settings.finish == "first":
            goes_on &= ~np.isin(lane, lane[there])
        long = goes_on & (steps >= settings.max_steps)
        lanes.by_steps[lane[long]] = True
        goes_on &= ~long

        under_way = self._lane
        place = self._take(int(goes_on.sum()))
        self._lane, self._place, self._length = lane[goes_on], place, steps[goes_on] + 1
        table.parent[place], table.road[place] = before[goes_on], road[goes_on]
        table.time[place], table.log_prob[place] = time[goes_on], log_prob[goes_on]
        for ended in np.setdiff1d(under_way, self._lane):
            yield self._end(int(ended))

    def _choose(self) -> tuple[Int64, Int64, Float64]:
        """Beam, road and log-probability of each path that takes a place."""
        lanes, table, settings = self._lanes, self._table, self._settings
        lane, place, length = self._lane, self._place, self._length
        candidates, log_prob = self._student.advance(table, place, length, lanes.weekend[lane], lanes.destination[lane])
        lanes.note(lane, place, table.road[place])
        steps = np.ones(self._count)
        steps[lane] = length
        most = len(lane) * settings.width
        chosen_row, chosen_road = np.empty((2, most), np.int64)
        chosen_log_prob = np.empty(most)
        count = kernels.choose(
            chosen_row, chosen_road, chosen_log_prob,
            lane, ragged.offsets(candidates.length), candidates.road,
            log_prob + np.repeat(table.log_prob[place], candidates.length),
            table.parent, table.road, place, lanes.destination,
            self._least * steps**settings.length_power, self._best, settings.width, RULES[settings.repeats],
        )  # fmt: skip
        return chosen_row[:count], chosen_road[:count], chosen_log_prob[:count]

    def _take(self, count: int) -> Int64:
        """Places for steps, those that no path needs any more first."""
        if count > self._table.free:
            self._table.keep(self._place, self._lanes.nearest)
        return self._table.take(count)

    def _finish(self, lane: int, before: int, road: int, time: int, log_prob: float) -> None:
        roads, times = self._table.roads_and_times(before)
        score = log_prob / len(roads) ** self._settings.length_power
        if lane not in self._finished or score > self._finished[lane][0]:
            self._finished[lane] = (score, np.append(roads, road), np.append(times, time), log_prob)
            self._least[lane] = score

    def _end(self, lane: int) -> Found:
        if lane in self._finished:
            _, roads, times, log_prob = self._finished.pop(lane)
            return self._lanes.arrived(lane, roads, times, log_prob)
        return self._lanes.failed(lane, self._table)
