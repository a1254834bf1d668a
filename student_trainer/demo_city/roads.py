"""Streets -> directed roads that can all be reached from each other."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from shared.arrays import Float64
from student_trainer.data import geometry
from student_trainer.demo_city.streets import Node, Street

Successors = list[list[int]]

ORIGIN_LAT, ORIGIN_LNG = 45.0, 10.0
"""Where the south-west corner of the plan lies, degrees: somewhere in a plain."""
METRES_PER_DEGREE = np.radians(1) * geometry.EARTH_RADIUS_M


@dataclasses.dataclass(frozen=True, eq=False)
class Road:
    """One direction of a street.

    Attributes:
        street: its number; the other direction has the same.
        start, end: junctions.
        road_class: as in OpenStreetMap's `highway`.
        one_way: whether there is no other direction.
        points: latitude and longitude of its vertices as printed, 6 decimals.
        length: metres.
        middle: float64 [2] metres on the plan.
    """

    street: int
    start: Node
    end: Node
    road_class: str
    one_way: bool
    points: tuple[tuple[str, str], ...]
    length: float
    middle: Float64

    @property
    def degrees(self) -> Float64:
        """Vertices, float64 [K, 2] latitude and longitude."""
        return np.array(self.points, np.float64)


def make_roads(streets: Sequence[Street]) -> tuple[list[Road], Successors]:
    """All directed roads of the largest part in which every road reaches every other.

    Returns:
        The roads, and the successors of each: no u-turns but at dead ends.
    """
    roads = [road for number, street in enumerate(streets) for road in _directions(number, street)]
    while True:
        successors = _successors(roads)
        start = next(i for i, road in enumerate(roads) if road.road_class == "primary")
        kept = _reachable(successors, start) & _reachable(_reversed(successors), start)
        if len(kept) == len(roads):
            return roads, successors
        roads = [roads[i] for i in sorted(kept)]  # may make new dead ends: look again


def _directions(number: int, street: Street) -> list[Road]:
    lat = ORIGIN_LAT + street.line[:, 1] / METRES_PER_DEGREE
    lng = ORIGIN_LNG + street.line[:, 0] / (METRES_PER_DEGREE * np.cos(np.radians(ORIGIN_LAT)))
    points = tuple((f"{a:.6f}", f"{b:.6f}") for a, b in zip(lat, lng, strict=True))
    degrees = np.array(points, np.float64)
    metres = geometry.haversine_m(degrees[:-1, 0], degrees[:-1, 1], degrees[1:, 0], degrees[1:, 1])
    length = round(float(metres.sum()), 2)
    shared = (street.road_class, street.one_way)
    middle = street.line.mean(axis=0)
    roads = [Road(number, street.start, street.end, *shared, points, length, middle)]
    if not street.one_way:
        roads.append(Road(number, street.end, street.start, *shared, points[::-1], length, middle))
    return roads


def _successors(roads: Sequence[Road]) -> Successors:
    leaving: dict[Node, list[int]] = defaultdict(list)
    for i, road in enumerate(roads):
        leaving[road.start].append(i)
    onwards = [[j for j in leaving[road.end] if roads[j].street != road.street] for road in roads]
    return [ahead or leaving[road.end] for ahead, road in zip(onwards, roads, strict=True)]


def _reversed(successors: Successors) -> Successors:
    predecessors: Successors = [[] for _ in successors]
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    return predecessors


def _reachable(following: Successors, start: int) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        for road in following[waiting.pop()]:
            if road not in seen:
                seen.add(road)
                waiting.append(road)
    return seen
