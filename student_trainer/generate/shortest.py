"""The model-free baseline: the shortest way, and when it enters its roads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from shared.arrays import Float64, Int64
from shared.store import Trips
from student_trainer.data import graph
from student_trainer.data.network import RoadNetwork
from student_trainer.generate.found import Found
from student_trainer.generate.lanes import Lanes
from student_trainer.generate.pairs import Pairs
from student_trainer.model.student import Decoder


def class_paces(network: RoadNetwork, length: Float64, trips: Trips) -> Float64:
    """Seconds per metre of each road's class, float64 [N]: all seconds that trips spend on such roads, over all metres.

    A road takes from its own entry to the next one's. A class that no trip uses has the pace of all roads together;
    without any trip that moves it is 0.
    """
    step = np.ones(len(trips.roads), np.bool_)
    step[trips.offsets[1:] - 1] = False
    at = np.flatnonzero(step)
    road = trips.roads[at]
    seconds, kind = (trips.times[at + 1] - trips.times[at]).astype(np.float64), network.attr_type
    totals = [
        np.bincount(kind[road], weights=values, minlength=network.num_types) for values in (seconds, length[road])
    ]
    overall = totals[0].sum() / max(totals[1].sum(), graph.LEAST_M)
    pace = np.where(totals[1] > 0, totals[0] / np.maximum(totals[1], graph.LEAST_M), overall)
    return np.asarray(pace[kind])


class ShortestPathSearch:
    """The shortest way of each pair; times by road class, or by a student that follows the way."""

    def __init__(
        self,
        network: RoadNetwork,
        length: Float64,
        pairs: Pairs,
        seconds: Float64,
        student: Decoder | None,
        lanes: int,
    ) -> None:
        """
        Args:
            network: the roads; length: float64 [N] metres.
            pairs: the pairs.
            seconds: float64 [N] that a road takes, without a student.
            student: tells the times, if there is one.
            lanes: ways that are looked for at once, and that the student follows at once.
        """
        self._network, self._length, self._pairs, self._seconds = network, length, pairs, seconds
        self._student, self._count = student, lanes

    def run(self, todo: Iterable[int]) -> Iterator[Found]:
        """The trips of these pairs, all of which have a way."""
        source = iter(todo)
        while block := list(itertools.islice(source, self._count)):
            origin, destination = self._pairs.origin[block], self._pairs.destination[block]
            ways = graph.shortest_paths(self._network, self._length, origin, destination)
            found = dict(zip(block, ways, strict=True))
            yield from self._by_class(found) if self._student is None else self._follow(self._student, found)

    def _by_class(self, ways: dict[int, Int64]) -> Iterator[Found]:
        for pair, roads in ways.items():
            passed = np.append(0, np.cumsum(self._seconds[roads[:-1]]))
            times = self._pairs.departure[pair] + np.rint(passed).astype(np.int64)
            yield Found(pair, "arrived", roads, times, None, 0)

    def _follow(self, student: Decoder, ways: dict[int, Int64]) -> Iterator[Found]:
        table = student.table()
        lanes = Lanes(len(ways), self._pairs, ways, student.network)
        lane, place, steps = np.empty((3, 0), np.int64)
        while True:
            new = lanes.admit(len(ways))
            start = table.take(len(new))
            table.parent[start], table.road[start], table.time[start] = -1, lanes.origin[new], lanes.departure[new]
            lane, place = np.concatenate([lane, new]), np.concatenate([place, start])
            steps = np.concatenate([steps, np.zeros(len(new), np.int64)])
            if not len(lane):
                return
            student.advance(table, place, steps + 1, lanes.weekend[lane], lanes.destination[lane])
            lanes.note(lane, place, table.road[place])
            road = np.array([ways[int(lanes.pair[one])][step + 1] for one, step in zip(lane, steps, strict=True)])
            time = table.time[place] + student.seconds(table, place, road)
            there = road == lanes.destination[lane]
            for i in np.flatnonzero(there):
                _, times = table.roads_and_times(int(place[i]))
                roads = ways[int(lanes.pair[lane[i]])]
                yield lanes.arrived(int(lane[i]), roads, np.append(times, time[i]), None)
            before, lane, steps = place[~there], lane[~there], steps[~there] + 1
            if len(lane) > table.free:
                table.keep(before)
            place = table.take(len(lane))
            table.parent[place], table.road[place], table.time[place] = before, road[~there], time[~there]
