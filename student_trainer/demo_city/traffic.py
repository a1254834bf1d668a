"""How fast the roads are: by class, hour and distance from the centre, and what turns cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.arrays import Float64
from student_trainer.data import geometry
from student_trainer.demo_city.roads import Road, Successors

CLASSES = ("motorway", "motorway_link", "primary", "secondary", "residential")
SPEED_KMH = np.array([85.0, 45.0, 48.0, 40.0, 27.0])
"""Free-flow speed of each class."""
SENSITIVITY = np.array([0.7, 0.5, 1.2, 0.9, 0.4])
"""How much a rush hour slows each class down."""
SIGNAL = np.array([0.0, 0.3, 0.35, 0.3, 0.15])
"""Chance of having to wait at the end of a road of each class."""
CENTRE_RADIUS_M = 700.0
WEEKEND_PEAK = 0.25
"""Strength of a rush hour at weekends."""


class Traffic:
    """Travel times on a network of N roads.

    Attributes:
        road_class: int64 [N] index in `CLASSES`.
        free_flow: float64 [N] seconds.
        turn_seconds: for each road, the seconds lost by turning into each successor.
    """

    def __init__(self, roads: Sequence[Road], successors: Successors) -> None:
        self.road_class = np.array([CLASSES.index(road.road_class) for road in roads])
        self.free_flow = np.array([road.length for road in roads]) / (SPEED_KMH[self.road_class] / 3.6)
        middle = np.array([road.middle for road in roads])
        centre_distance = np.hypot(*(middle - middle.mean(axis=0)).T)
        crowding = 0.3 + np.exp(-((centre_distance / CENTRE_RADIUS_M) ** 2))
        self._slowdown = SENSITIVITY[self.road_class] * crowding
        self.turn_seconds = _turn_seconds(roads, successors)

    def seconds(self, weekday: int, hour: float) -> Float64:
        """Expected seconds on each road, without turns and signals."""
        return np.asarray(self.free_flow * (1 + rush(weekday, hour) * self._slowdown))


def rush(weekday: int, hour: float) -> float:
    """Strength of the rush hour: about 1 at 8:12 and 17:36 on Monday (0) to Friday (4)."""
    strength = np.exp(-(((hour - 8.2) / 1.1) ** 2)) + np.exp(-(((hour - 17.6) / 1.5) ** 2))
    return float(strength * (WEEKEND_PEAK if weekday >= 5 else 1.0))


def _turn_seconds(roads: Sequence[Road], successors: Successors) -> list[list[float]]:
    """Seconds lost by turning: nothing straight on, about 6 at a right angle, 25 for a u-turn."""
    ends = [road.degrees for road in roads]
    leaving = np.array([geometry.bearing(*line[0], *line[1]) for line in ends])
    arriving = np.array([geometry.bearing(*line[-2], *line[-1]) for line in ends])
    angles = [geometry.turn(arriving[i], leaving[following]) / np.pi for i, following in enumerate(successors)]
    return [(25 * angle**2).tolist() for angle in angles]
