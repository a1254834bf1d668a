"""The network of a demo city: what every seed must give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.demo_city.drivers import fastest
from student_trainer.demo_city.roads import Road, Successors, make_roads
from student_trainer.demo_city.streets import make_plan
from student_trainer.demo_city.traffic import CLASSES, Traffic, rush


def make_network(seed: int, columns: int = 15, rows: int = 13) -> tuple[list[Road], Successors]:
    return make_roads(make_plan(columns, rows, np.random.default_rng(seed)).streets)


def reach(following: Successors, start: int) -> set[int]:
    seen = {start}
    while True:
        new = {j for i in seen for j in following[i]} - seen
        if not new:
            return seen
        seen |= new


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(9, 16), st.integers(9, 16))
def test_every_road_reaches_every_other(seed: int, columns: int, rows: int) -> None:
    roads, successors = make_network(seed, columns, rows)
    backwards: Successors = [[] for _ in roads]
    for i, following in enumerate(successors):
        for j in following:
            backwards[j].append(i)
    assert len(reach(successors, 0)) == len(reach(backwards, 0)) == len(roads)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_successors_begin_where_the_road_ends(seed: int) -> None:
    roads, successors = make_network(seed)
    for i, following in enumerate(successors):
        assert 1 <= len(following) <= 4
        leaving = [j for j, road in enumerate(roads) if road.start == roads[i].end]
        others = [j for j in leaving if roads[j].street != roads[i].street]
        assert following == (others or leaving)  # u-turns only at dead ends
        for j in following:
            assert roads[j].points[0] == roads[i].points[-1]


def test_city_has_what_makes_it_one() -> None:
    roads, successors = make_network(0)
    assert 500 <= len(roads) <= 700
    assert {road.road_class for road in roads} == set(CLASSES)
    assert 30 < sum(road.one_way for road in roads) < len(roads) / 2
    assert max(map(len, successors)) == 4
    assert all(road.length > 20 for road in roads)


def test_one_way_streets_have_one_road_and_others_two() -> None:
    roads, _ = make_network(1)
    for road in roads:
        twins = [other for other in roads if other.street == road.street and other is not road]
        if road.one_way:
            assert not twins
        for twin in twins:
            assert twin.points == road.points[::-1]


def test_few_bridges_cross_the_river() -> None:
    plan = make_plan(15, 13, np.random.default_rng(0))
    crossing = {s.road_class for s in plan.streets if s.start[0] >= 0 and {s.start[1], s.end[1]} == {5, 6}}
    assert crossing == {"primary"}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_fastest_route_is_the_shortest_by_relaxation(seed: int) -> None:
    roads, successors = make_network(0, 9, 9)
    random = np.random.default_rng(seed)
    seconds = random.uniform(1, 9, len(roads))
    turns = [random.uniform(0, 3, len(following)).tolist() for following in successors]
    origin, destination = (int(road) for road in random.integers(len(roads), size=2))
    best = np.full(len(roads), np.inf)
    best[origin] = 0
    for _ in roads:
        before = best.copy()
        for i, following in enumerate(successors):
            for j, turn in zip(following, turns[i], strict=True):
                best[j] = min(best[j], best[i] + turn + seconds[j])
        if np.array_equal(best, before):
            break
    route = fastest(successors, seconds, turns, origin, destination)
    assert (route[0], route[-1]) == (origin, destination)
    total = sum(turns[a][successors[a].index(b)] + seconds[b] for a, b in itertools.pairwise(route))
    assert total == pytest.approx(best[destination])


def test_rush_hours_slow_the_centre_most() -> None:
    roads, successors = make_network(0)
    traffic = Traffic(roads, successors)
    night, morning, sunday = traffic.seconds(0, 3.0), traffic.seconds(0, 8.2), traffic.seconds(6, 8.2)
    assert (morning > sunday).all()
    assert (sunday > night).all()
    primary = np.flatnonzero(traffic.road_class == CLASSES.index("primary"))
    middle = np.array([road.middle for road in roads])
    distance = np.hypot(*(middle - middle.mean(axis=0)).T)[primary]
    slowdown = (morning / night)[primary]
    assert slowdown[distance.argmin()] > 1.8 > 1.5 > slowdown[distance.argmax()]
    assert rush(2, 17.6) == pytest.approx(1, abs=1e-3)
