"""Directed roads, whatever they were read from: their names, which follows which, and how they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.arrays import Int64
from shared.errors import DataError
from student_trainer.data.geometry import haversine_m
from student_trainer.prepare import points

Line = tuple[tuple[float, float], ...]
"""Longitude and latitude of each vertex, degrees, in the direction of travel."""
OPPOSITE = "-"
"""Before the name of a road: the same line the other way."""


@dataclasses.dataclass(frozen=True)
class Road:
    """A road of one direction.

    Attributes:
        name: what trips call it.
        highway: its class.
        length: metres.
    """

    name: str
    line: Line
    highway: str
    length: float

    def reversed(self, name: str) -> Road:
        """The opposite one."""
        return Road(name, self.line[::-1], self.highway, self.length)


def measured(line: Line) -> float:
    """Length of a line on the sphere, metres."""
    lng, lat = np.array(line, np.float64).T
    return float(haversine_m(lat[:-1], lng[:-1], lat[1:], lng[1:]).sum())


def numbers(path: Path, roads: Sequence[Road]) -> dict[str, int]:
    """The row of each road in `roadmap.geo`, by name.

    Raises:
        DataError: there are none, or two have the same name.
    """
    if not roads:
        raise DataError(f"{path} holds no road")
    found: dict[str, int] = {}
    for number, road in enumerate(roads):
        if found.setdefault(road.name, number) != number:
            raise DataError(
                f"{path}: two roads are called {road.name!r}, so trips could not say which they mean; name others of "
                "their properties, as in network.id=u,v,key"
            )
    return found


def successors(roads: Sequence[Road], u_turns: bool) -> Iterator[tuple[int, int]]:
    """Each road and those that begin where it ends, in the order of the roads.

    Args:
        u_turns: let the opposite of a road follow it, too.
    """
    ends = np.array([end for road in roads for end in (road.line[0], road.line[-1])], np.float64)
    number = points.number(ends)[0].reshape(-1, 2)
    leaving = _by_start(number[:, 0])
    for road, (start, end) in enumerate(number.tolist()):
        for other in leaving.get(end, ()):
            is_opposite = number[other, 1] == start and roads[other].line == roads[road].line[::-1]
            if other != road and (u_turns or not is_opposite):
                yield road, other


def _by_start(start: Int64) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for road, point in enumerate(start.tolist()):
        found.setdefault(point, []).append(road)
    return found
