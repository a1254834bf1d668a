"""Which raw trips are usable, and the steps that they consist of.

A step is a road with a next road; a trip of n roads has n - 1 steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Int64
from shared.store import Trips
from student_trainer.prepare.network import Successors
from student_trainer.prepare.raw import RawTrips, refuse


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """All P steps of a split, flat.

    Attributes:
        road, next_road, destination: int64 [P]; the destination is the trip's last road.
        transition: int64 [P] from road to next road, as `Successors` numbers them.
        previous_transition: int64 [P] transition of the step before; -1 at a trip's first step.
    """

    road: Int64
    next_road: Int64
    destination: Int64
    transition: Int64
    previous_transition: Int64

    def __len__(self) -> int:
        return len(self.road)


def step_index(offsets: Int64) -> Int64:
    """Indices, in the flat roads, of all roads but each trip's last: int64 [P]."""
    inside = np.ones(int(offsets[-1]), bool)
    inside[offsets[1:] - 1] = False
    return np.flatnonzero(inside)


def steps_of(trips: Trips, successors: Successors) -> Steps:
    """The steps of usable trips."""
    index = step_index(trips.offsets)
    lengths = trips.lengths - 1
    road, next_road = trips.roads[index].astype(np.int64), trips.roads[index + 1].astype(np.int64)
    transition = successors.transitions(road, next_road)
    previous = np.roll(transition, 1)
    previous[ragged.offsets(lengths)[:-1]] = -1
    destination = np.repeat(trips.roads[trips.offsets[1:] - 1].astype(np.int64), lengths)
    return Steps(road, next_road, destination, transition, previous)


def usable(raw: RawTrips, successors: Successors, strict: bool) -> tuple[Trips, dict[str, int]]:
    """Keeps the trips that a model can learn from.

    A trip is dropped for the first reason that applies: `too_short` (fewer than 2 roads),
    `off_network` (a next road that is no successor), `time_backwards`.

    Args:
        raw: trips of a split; their rows count from its first one.
        successors: the road network.
        strict: refuse a trip that is off the network or goes back in time.

    Returns:
        The trips, none perhaps, and how many were dropped for each reason.

    Raises:
        CellError: `strict` and such a trip.
    """
    lengths = np.diff(raw.offsets)
    row = ragged.rows(lengths)
    step = np.flatnonzero(row[:-1] == row[1:])  # step_index needs trips of at least one road
    off_network = step[successors.transitions(raw.roads[step], raw.roads[step + 1]) < 0]
    backwards = step[raw.times[step + 1] < raw.times[step]]
    if strict:
        _refuse_first(raw, row, off_network, backwards)

    reason = np.zeros(len(lengths), np.int64)
    names = ["", "too_short", "off_network", "time_backwards"]
    reason[row[backwards]] = 3
    reason[row[off_network]] = 2
    reason[lengths < 2] = 1
    counts = np.bincount(reason, minlength=len(names))
    dropped = {name: int(count) for name, count in zip(names[1:], counts[1:], strict=True)}
    kept = np.flatnonzero(reason == 0)
    return _take(raw, kept), dropped


def _refuse_first(raw: RawTrips, row: Int64, off_network: Int64, backwards: Int64) -> None:
    def place_in_trip(index: int) -> int:
        return index - int(raw.offsets[row[index]])

    for index in off_network[:1]:
        a, b, place = raw.roads[index], raw.roads[index + 1], place_in_trip(index)
        refuse(raw.path, row[index], "rid_list", f"road {b} at place {place + 1} is not a successor of road {a}")
    for index in backwards[:1]:
        refuse(raw.path, row[index], "time_list", f"time goes backwards after place {place_in_trip(index)}")


def _take(raw: RawTrips, kept: Int64) -> Trips:
    lengths = np.diff(raw.offsets)[kept]
    index = ragged.slices(raw.offsets[kept], lengths)
    return Trips(raw.roads[index], raw.times[index], ragged.offsets(lengths), kept)
