"""Features, zones, floors and collisions against step-by-step counting."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import ragged
from shared.store import Store, Trips
from student_trainer.data.geometry import haversine_m
from student_trainer.prepare import collisions, counts, features, floors, zones
from student_trainer.prepare.config import CELL_SIZE, GridConfig, PrepareConfig
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.network import Successors
from student_trainer.prepare.report import render
from student_trainer.prepare.run import run
from student_trainer.prepare.workers import Workers

ROADS = 12


def random_city(seed: int) -> tuple[Successors, Trips, Trips, np.ndarray]:
    """Successors (each road has some), training and validation walks, centroids."""
    random = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(ROADS) for b in random.permutation(ROADS)[: random.integers(1, 5)]]
    origin, destination = np.array(pairs, np.int64).T
    successors = Successors.from_pairs(origin, destination, ROADS)

    def walks(count: int) -> Trips:
        trips = []
        for _ in range(count):
            trip = [int(random.integers(ROADS))]
            for _ in range(random.integers(1, 6)):
                choice = successors.roads[successors.offsets[trip[-1]] : successors.offsets[trip[-1] + 1]]
                trip.append(int(random.choice(choice)))
            trips.append(trip)
        roads = np.array([road for trip in trips for road in trip], np.int32)
        offsets = ragged.offsets(np.array([len(trip) for trip in trips]))
        return Trips(roads, np.cumsum(random.integers(0, 9, len(roads))), offsets, np.arange(count))

    # a coarse lattice, so that distances tie
    return successors, walks(15), walks(10), random.integers(0, 3, (ROADS, 2)) / 100


def trips_as_lists(trips: Trips) -> list[list[int]]:
    return [trips.roads[a:b].tolist() for a, b in zip(trips.offsets[:-1], trips.offsets[1:], strict=True)]


def counted(trips: Trips, successors: Successors) -> Counts:
    with Workers(1) as workers:
        return counts.count([trips], successors, workers)


def choose(counter: Counter[int], candidates: list[int]) -> int:
    return max(candidates, key=lambda road: (counter[road], -candidates.index(road)))


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_floors_by_counting(seed: int) -> None:
    successors, train, val, centroids = random_city(seed)
    first: dict[int, Counter[int]] = defaultdict(Counter)
    second: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for trip in trips_as_lists(train):
        for t in range(len(trip) - 1):
            first[trip[t]][trip[t + 1]] += 1
            if t:
                second[trip[t - 1], trip[t]][trip[t + 1]] += 1
    hits: Counter[str] = Counter()
    total = 0
    for trip in trips_as_lists(val):
        for t in range(len(trip) - 1):
            road, truth = trip[t], trip[t + 1]
            candidates = successors.roads[successors.offsets[road] : successors.offsets[road + 1]].tolist()
            metres = [float(haversine_m(*centroids[c], *centroids[trip[-1]])) for c in candidates]
            by_first = choose(first[road], candidates)
            known = second.get((trip[t - 1], road)) if t else None
            hits["single_successor"] += len(candidates) == 1
            hits["nearest_to_destination"] += candidates[int(np.argmin(metres))] == truth
            hits["first_order_markov"] += by_first == truth
            hits["second_order_markov"] += (choose(known, candidates) if known else by_first) == truth
            total += 1
    with Workers(1) as workers:
        nearest = floors.count_nearest([val], successors, centroids, workers)
    found = floors.measure(counted(train, successors), counted(val, successors), nearest, successors)
    assert found == pytest.approx({name: hits[name] / total for name in found})


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_collisions_by_counting(seed: int, cells: int) -> None:
    successors, _, val, _ = random_city(seed)
    cell = np.random.default_rng(seed).integers(0, cells, ROADS)
    colliding, ceiling, same, total = 0, 0.0, 0, 0
    for trip in trips_as_lists(val):
        for road, truth in itertools.pairwise(trip):
            candidates = successors.roads[successors.offsets[road] : successors.offsets[road + 1]]
            there = Counter(cell[candidates].tolist())
            colliding += max(there.values()) > 1
            ceiling += 1 / there[int(cell[truth])]
            same += cell[road] == cell[truth]
            total += 1
    found = collisions.measure(cell, successors, counted(val, successors), 0.1, chosen=False)
    assert found.colliding == pytest.approx(colliding / total)
    assert found.ceiling == pytest.approx(ceiling / total)
    assert found.same_cell == pytest.approx(same / total)
    assert found.occupied == len(set(cell.tolist()))


def test_advice_is_the_usual_size_unless_a_finer_one_is_needed() -> None:
    def told(*ceilings: float) -> collisions.Advice:
        sizes = (0.0005, 0.00025, CELL_SIZE, 0.0000625)
        lines = zip(sizes, ceilings, strict=False)
        return collisions.advise([collisions.Collisions(size, 0.0, ceiling, 1, 0.0, False) for size, ceiling in lines])

    assert GridConfig().cell_size == CELL_SIZE == 0.000125
    usual = told(0.94, 0.98, 0.99, 0.995)
    assert usual.cell_size == CELL_SIZE
    assert usual.reason == (
        "the usual size, and fine enough: its ceiling is 99.0 %, that of 0.0000625 99.5 % "
        "(up to 1 point below is enough)"
    )
    assert told(1.0, 1.0, 1.0, 1.0).cell_size == CELL_SIZE  # though 0.0005 were enough: one rule, one default
    finer = told(0.5, 0.6, 0.7, 0.8)
    assert (finer.cell_size, finer.reason) == (0.0000625, "the finest measured; its ceiling is 80.0 %")
    assert told(0.5, 0.6).cell_size == 0.00025  # finer grids do not fit over such bounds
    finest = [collisions.Collisions(size, 0.0, 1 - size, 1, 0.0, False) for size in (CELL_SIZE, 0.00003, 0.00002)]
    finest[0] = dataclasses.replace(finest[0], ceiling=0.5)
    assert collisions.advise(finest).reason.startswith("the coarsest that is fine enough: its ceiling is 100.0 %")


def test_sizes_are_written_without_an_exponent() -> None:
    assert [collisions.degrees(size) for size in (0.0000625, 0.001, 2.0)] == ["0.0000625", "0.001", "2"]


def test_zone_flow_by_counting() -> None:
    successors, train, _, _ = random_city(3)
    zone = np.array([0, 1, 2] * 4)
    expected = np.zeros((3, 3), int)
    for trip in trips_as_lists(train):
        for a, b in itertools.pairwise(trip):
            expected[zone[a], zone[b]] += zone[a] != zone[b]
    flow = zones.transitions(counted(train, successors), zone, successors)
    np.testing.assert_array_equal(flow, expected)
    edges, weight = zones.zone_graph(flow)
    rows = np.maximum(expected.sum(1), 1)
    for i, j, w in zip(*edges, weight, strict=True):
        assert w == pytest.approx(expected[i, j] / np.sqrt(rows[i] * rows[j]), rel=1e-6)
    assert edges.shape[1] == np.count_nonzero(expected)


@pytest.mark.parametrize(
    ("highway", "classes"), [(["10", "2", "10"], ["2", "10"]), (["b", "10", "a"], ["10", "a", "b"])]
)
def test_integer_classes_sort_by_value(highway: list[str], classes: list[str]) -> None:
    found, index = features.road_types(highway)
    assert found == classes
    assert [found[i] for i in index] == highway


def test_constant_column_has_zero_scores(caplog: pytest.LogCaptureFixture) -> None:
    assert not features.z_scores(np.full(5, 0.1), "length").any()
    assert "length is the same for all roads" in caplog.text


def test_constant_travel_time_has_a_deviation_to_divide_by(caplog: pytest.LogCaptureFixture) -> None:
    successors = Successors.from_pairs(np.array([0]), np.array([0]), 1)
    trips = Trips(np.zeros(3, np.int32), np.array([0, 5, 10]), np.array([0, 3]), np.zeros(1, np.int64))
    mu, sigma = features.travel_time_statistics(counted(trips, successors))
    assert mu == pytest.approx(np.log(6)) and sigma == 1.0
    assert "deviation" in caplog.text


def test_travel_time_statistics_are_those_of_all_steps() -> None:
    successors, train, _, _ = random_city(5)
    seconds = [
        b - a
        for first, last in itertools.pairwise(train.offsets)
        for a, b in itertools.pairwise(train.times[first:last])
    ]
    mu, sigma = features.travel_time_statistics(counted(train, successors))
    assert mu == pytest.approx(np.log1p(seconds).mean(), rel=1e-14)
    assert sigma == pytest.approx(np.log1p(seconds).std(), rel=1e-14)


def test_no_history_at_all_falls_back_to_the_first_order() -> None:
    successors = Successors.from_pairs(np.array([0, 0]), np.array([1, 2]), 3)
    one = counted(
        Trips(np.array([0, 2], np.int32), np.array([0, 1]), np.array([0, 2]), np.zeros(1, np.int64)), successors
    )
    found = floors.measure(one, one, 0, successors)
    assert found["second_order_markov"] == found["first_order_markov"] == 1.0


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_counts_by_counting(seed: int, blocks: int) -> None:
    successors, train, _, _ = random_city(seed)
    transition, pair, seconds = Counter[tuple[int, int]](), Counter[tuple[int, int, int]](), Counter[int]()
    for trip in trips_as_lists(train):
        transition.update(itertools.pairwise(trip))
        pair.update(zip(trip[:-2], trip[1:-1], trip[2:], strict=True))
    for first, last in itertools.pairwise(train.offsets):
        seconds.update(np.diff(train.times[first:last]).tolist())
    parts = [train.take(index) for index in np.array_split(np.arange(len(train)), blocks)]
    with Workers(2) as workers:
        found = counts.count(parts, successors, workers)
    names = list(zip(successors.origin.tolist(), successors.roads.tolist(), strict=True))
    assert {name: n for name, n in zip(names, found.transition, strict=True) if n} == transition
    pairs = [
        (a, b, int(c)) for a, b in names for c in successors.roads[successors.offsets[b] : successors.offsets[b + 1]]
    ]
    assert {name: n for name, n in zip(pairs, found.pair, strict=True) if n} == pair
    assert dict(zip(found.seconds.tolist(), found.seconds_count.tolist(), strict=True)) == seconds
    assert found.steps == transition.total()


@pytest.mark.integration
def test_real_city_has_its_known_floors_and_collisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = REPOSITORY.parent / "shared" / "data" / "sf_taxi_core"
    if not raw.is_dir():
        pytest.skip("needs the real trips of San Francisco, which are not part of the repository")
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    manifest = Store(tmp_path / "store").manifest
    assert list(manifest["floors"].values()) == pytest.approx([0.041, 0.750, 0.863, 0.865], abs=1e-3)
    found = {line["cell_size"]: (line["colliding"], line["ceiling"]) for line in manifest["collisions"]}
    assert found[0.001] == pytest.approx((0.38, 0.83), abs=5e-3)
    assert found[0.0005] == pytest.approx((0.15, 0.94), abs=5e-3)
    assert found[0.000125] == pytest.approx((0.024, 0.994), abs=5e-3)
    assert manifest["recommended_cell_size"] == 0.000125
    assert capsys.readouterr().out == render(manifest) + "\n"
