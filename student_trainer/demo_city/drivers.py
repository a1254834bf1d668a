"""Who drives, from where to where, when, and by which roads.

People commute between home and work and visit a few popular places. Each takes the way
that seems fastest to them: expected travel time at that hour, bent by a lasting taste
(classes, turns, familiar streets) and by the whim of the day.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools

import numpy as np

from shared.arrays import Float64, Int64
from student_trainer.demo_city.roads import Successors
from student_trainer.demo_city.traffic import CLASSES, SIGNAL, Traffic, rush

MIN_ROADS, MAX_ROADS = 8, 60
HOTSPOTS = 6
CLASS_TASTE, STREET_TASTE, WHIM = 0.15, 0.15, 0.1
"""Standard deviations of the log of perceived time: a driver's taste in classes and in single
streets, and the day's whim."""
PACE, ROAD_NOISE = 0.1, 0.2
"""Standard deviations of the log of real time: a trip's pace, and chance on each road."""
SIGNAL_WAIT_S = 9.0
MONDAY = 1_709_510_400
"""2024-03-04T00:00:00Z, the first day."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trip:
    """Roads and the moment of entering each, seconds since 1970, strictly increasing."""

    driver: int
    roads: list[int]
    times: Int64


@dataclasses.dataclass(frozen=True)
class _Errand:
    driver: int
    origin: int
    destination: int
    day: int
    hour: float


class Population:
    """The drivers of a city, and their trips."""

    def __init__(
        self,
        successors: Successors,
        traffic: Traffic,
        middle: Float64,
        drivers: int,
        random: np.random.Generator,
    ) -> None:
        """Settles the drivers; `middle` is each road's place, float64 [N, 2] metres."""
        self._successors = successors
        self._traffic = traffic
        self._random = random
        num_roads = len(successors)
        is_street = traffic.road_class >= CLASSES.index("primary")
        distance = np.hypot(*(middle - middle.mean(axis=0)).T) / 1000
        quiet = traffic.road_class == CLASSES.index("residential")
        living = is_street * np.where(quiet, 1.0, 0.2) * (0.2 + distance)
        working = is_street * np.exp(-((distance / 0.45) ** 2))
        self._everywhere = is_street / is_street.sum()
        self._home = random.choice(num_roads, drivers, p=living / living.sum())
        self._work = random.choice(num_roads, drivers, p=working / working.sum())
        self._hotspots = random.choice(num_roads, HOTSPOTS, replace=False, p=self._everywhere)
        self._taste = random.normal(0, CLASS_TASTE, (drivers, len(CLASSES)))[:, traffic.road_class]
        self._taste += random.normal(0, STREET_TASTE, (drivers, num_roads))
        self._turn_dislike = random.lognormal(0, 0.4, drivers)

    def trips(self, count: int, weeks: int) -> list[Trip]:
        """Draws trips; errands that are too short or too long are drawn again."""
        trips: list[Trip] = []
        while len(trips) < count:
            errand = self._errand(weeks)
            route = self._route(errand)
            if MIN_ROADS <= len(route) <= MAX_ROADS:
                trips.append(Trip(errand.driver, route, self._clock(errand, route)))
        return trips

    def _errand(self, weeks: int) -> _Errand:
        """Weekdays: to work in the morning, home in the evening; else between home, hot spots and anywhere."""
        random = self._random
        driver, day = int(random.integers(len(self._home))), int(random.integers(7 * weeks))
        home, work = int(self._home[driver]), int(self._work[driver])
        kind = random.random() if day % 7 < 5 else 1.0
        if kind < 0.3:
            return _Errand(driver, home, work, day, float(random.normal(8.0, 0.8) % 24))
        if kind < 0.6:
            return _Errand(driver, work, home, day, float(random.normal(17.6, 1.1) % 24))
        anywhere = int(random.choice(len(self._everywhere), p=self._everywhere))
        popular = int(random.choice(self._hotspots))
        places = [home, anywhere, popular] if random.random() < 0.5 else [anywhere, popular, home]
        return _Errand(driver, places[0], places[1 + int(random.integers(2))], day, float(random.uniform(6, 23.5)))

    def _route(self, errand: _Errand) -> list[int]:
        """The way that seems fastest to the driver."""
        whim = self._random.normal(0, WHIM, len(self._successors))
        seconds = self._traffic.seconds(errand.day % 7, errand.hour)
        perceived = seconds * np.exp(self._taste[errand.driver] + whim)
        # only ratios matter: this weighs the turns by the dislike
        perceived = perceived / self._turn_dislike[errand.driver]
        return fastest(self._successors, perceived, self._traffic.turn_seconds, errand.origin, errand.destination)

    def _clock(self, errand: _Errand, route: list[int]) -> Int64:
        """Entry times in whole seconds: real travel times with chance, turns and waits at signals."""
        random, traffic = self._random, self._traffic
        weekday = errand.day % 7
        roads, n = np.array(route), len(route)
        driving = traffic.seconds(weekday, errand.hour)[roads]
        driving = driving * np.exp(random.normal(0, PACE) + random.normal(0, ROAD_NOISE, n))
        waits = random.random(n) < SIGNAL[traffic.road_class[roads]]
        waiting = waits * random.exponential(SIGNAL_WAIT_S * (1 + rush(weekday, errand.hour)), n)
        turning = [traffic.turn_seconds[a][self._successors[a].index(b)] for a, b in itertools.pairwise(route)]
        spent = np.maximum(np.rint(driving + waiting)[:-1] + np.rint(turning), 1).astype(np.int64)
        start = MONDAY + errand.day * 86_400 + int(errand.hour * 3600)
        return start + np.concatenate([[0], np.cumsum(spent)])


def fastest(
    successors: Successors, seconds: Float64, turns: list[list[float]], origin: int, destination: int
) -> list[int]:
    """Dijkstra over roads: the roads from origin to destination with the least total time.

    Args:
        successors: of each road.
        seconds: float64 [N] time on each road, counted when it is entered.
        turns: of each road, time to turn into each successor.
        origin, destination: roads; every road can be reached.
    """
    best = {origin: 0.0}
    before: dict[int, int] = {}
    cost = seconds.tolist()
    waiting = [(0.0, origin)]
    while waiting:
        so_far, road = heapq.heappop(waiting)
        if road == destination:
            break
        if so_far > best[road]:
            continue
        for following, turn in zip(successors[road], turns[road], strict=True):
            total = so_far + cost[following] + turn
            if total < best.get(following, np.inf):
                best[following] = total
                before[following] = road
                heapq.heappush(waiting, (total, following))
    route = [destination]
    while route[-1] != origin:
        route.append(before[route[-1]])
    return route[::-1]
