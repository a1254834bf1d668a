"""What labelled trips show of all that a teacher of cells does not know: roads within a cell, departures, seconds.

Shapes: N roads, S transitions to successors, n trips, P steps of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Float64, Int32, Int64
from shared.errors import DataError
from shared.store import Trips
from student_trainer.data.network import RoadNetwork
from student_trainer.sample.philox import Purpose, uniform


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Counts and times of labelled trips.

    Attributes:
        first: int64 [N], trips that start on each road.
        taken: int64 [S], how often each transition was taken.
        departure: int64 [n], first times of trips.
        seconds: int64 [P], time between the entries of a road and the next one, road by road.
        seconds_offsets: int64 [N + 1], where those of each road begin.
        unseen_seconds: int64 [N], for roads without any: their length at the median speed of all steps.
    """

    first: Int64
    taken: Int64
    departure: Int64
    seconds: Int64
    seconds_offsets: Int64
    unseen_seconds: Int64

    def times(self, seed: int, walker: Int64, roads: Int64, offsets: Int64) -> Int64:
        """Entry times of the roads of trips, each drawn from what was seen on its road: int64 [L].

        Args:
            seed: of the random numbers.
            walker: int64 [m], number of each trip's walker.
            roads: int64 [L], roads back to back.
            offsets: int64 [m + 1].
        """
        lengths = np.diff(offsets)
        number = uniform(seed, Purpose.DEPARTURE, walker, np.zeros_like(walker))
        departure = self.departure[(number * len(self.departure)).astype(np.int64)]
        number = uniform(seed, Purpose.SECONDS, np.repeat(walker, lengths), ragged.positions(lengths))
        start, count = self.seconds_offsets[roads], np.diff(self.seconds_offsets)[roads]
        seen = self.seconds[np.minimum(start + (number * count).astype(np.int64), len(self.seconds) - 1)]
        seconds = np.where(count > 0, seen, self.unseen_seconds[roads])
        until = np.cumsum(seconds) - seconds
        return np.asarray(np.repeat(departure - until[offsets[:-1]], lengths) + until)


def observe(trips: Trips, network: RoadNetwork, length: Float64) -> Observed:
    """Counts labelled trips.

    Args:
        trips: at least one, each of two roads or more, on the network.
        network: N roads.
        length: float64 [N], metres.

    Raises:
        DataError: no trip takes any time.
    """
    inside = np.ones(len(trips.roads), bool)
    inside[trips.offsets[1:] - 1] = False
    step = np.flatnonzero(inside)
    road, seconds = trips.roads[step].astype(np.int64), trips.times[step + 1] - trips.times[step]
    moving = (seconds > 0) & (length[road] > 0)
    if not moving.any():
        raise DataError("no labelled trip takes any time: there is no speed to give roads that none has driven")
    speed = float(np.median(length[road[moving]] / seconds[moving]))
    order = np.argsort(road, kind="stable")
    return Observed(
        first=np.bincount(trips.roads[trips.offsets[:-1]], minlength=network.num_roads),
        taken=_transition_counts(road, trips.roads[step + 1], network),
        departure=trips.times[trips.offsets[:-1]],
        seconds=seconds[order],
        seconds_offsets=ragged.offsets(np.bincount(road, minlength=network.num_roads)),
        unseen_seconds=np.rint(length / speed).astype(np.int64),
    )


def _transition_counts(road: Int64, following: Int32, network: RoadNetwork) -> Int64:
    """How often each transition occurs among steps: int64 [S]."""
    edges = ragged.rows(np.diff(network.successor_offsets)) * network.num_roads + network.successors
    order = np.argsort(edges, kind="stable")
    place = order[np.searchsorted(edges[order], road * network.num_roads + following)]
    return np.bincount(place, minlength=len(edges))
