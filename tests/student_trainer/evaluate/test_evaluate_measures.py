"""What is measured of trips, against definitions written out, scipy, and cases by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from shared.store import Store, Trips
from student_trainer.data.geometry import EARTH_RADIUS_M, haversine_m
from student_trainer.data.network import RoadNetwork
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.run import run as make_city
from student_trainer.evaluate import floors, kernels, next_road
from student_trainer.evaluate.distributions import Values, edges_of, jensen_shannon_nats, totals
from student_trainer.evaluate.measures import Cells, measure_pairs, measure_trips, same_routes, shared_cell_pairs
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare

TRIPS = {"train": 80, "val": 40, "test": 2}
DEGREE_KM = math.pi * EARTH_RADIUS_M / 180 / 1000


def trips_of(*roads: list[int], seconds: int = 10) -> Trips:
    lengths = np.array([len(row) for row in roads])
    times = ragged.positions(lengths) * seconds
    return Trips(np.concatenate(roads).astype(np.int32), times, ragged.offsets(lengths), np.arange(len(roads)))


def distances_km(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All great circles between points [n, 2] and [m, 2], by the haversine formula."""
    return haversine_m(a[:, None, 0], a[:, None, 1], b[None, :, 0], b[None, :, 1]) / 1000


def hausdorff(d: np.ndarray) -> float:
    return float(max(d.min(axis=1).max(), d.min(axis=0).max()))


def dtw(d: np.ndarray) -> float:
    table = np.full((d.shape[0] + 1, d.shape[1] + 1), np.inf)
    table[0, 0] = 0
    for i, j in np.ndindex(d.shape):
        table[i + 1, j + 1] = d[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return float(table[-1, -1])


def edr(d: np.ndarray, tolerance: float) -> float:
    def edits(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        if (i, j) not in known:
            differs = int(d[i - 1, j - 1] > tolerance)
            known[i, j] = min(edits(i - 1, j - 1) + differs, edits(i - 1, j) + 1, edits(i, j - 1) + 1)
        return known[i, j]

    known: dict[tuple[int, int], int] = {}
    return edits(*d.shape) / max(d.shape)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_local_distances_follow_their_definitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, (2, 6))
    sides = [np.array([37.77, -122.42]) + 0.003 * random.standard_normal((n.sum(), 2)) for n in lengths]
    if seed % 3 == 0:
        sides[1][: lengths.min()] = sides[0][: lengths.min()]
    offsets = [ragged.offsets(n) for n in lengths]
    vectors = [kernels.unit_vectors(points) for points in sides]
    found = kernels.local_distances(vectors[0], offsets[0], vectors[1], offsets[1], 0.1)
    for k in range(6):
        a, b = (points[o[k] : o[k + 1]] for points, o in zip(sides, offsets, strict=True))
        d = distances_km(a, b)
        assert found[0][k] == pytest.approx(hausdorff(d), rel=1e-9, abs=1e-9)
        assert found[1][k] == pytest.approx(dtw(d), rel=1e-9, abs=1e-8)
        assert found[2][k] == edr(d, 0.1)


def test_hausdorff_is_scipys_in_the_plane() -> None:
    """Near the equator degrees are as good as kilometres."""
    random = np.random.default_rng(0)
    a, b = 1e-3 * random.random((7, 2)), 1e-3 * random.random((5, 2))
    found, _, _ = kernels.local_distances(
        kernels.unit_vectors(a), np.array([0, 7]), kernels.unit_vectors(b), np.array([0, 5]), 0.1
    )
    expected = max(scipy.spatial.distance.directed_hausdorff(*pair)[0] for pair in ((a, b), (b, a)))
    assert found[0] == pytest.approx(expected * DEGREE_KM, rel=1e-6)


def test_local_distances_by_hand() -> None:
    """On the equator, in hundredths of a degree: 0 1 2 against 0 2, far apart beyond 100 m."""
    line = kernels.unit_vectors(np.array([[0.0, 0.00], [0.0, 0.01], [0.0, 0.02], [0.0, 0.00], [0.0, 0.02]]))
    found = kernels.local_distances(line[:3], np.array([0, 3]), line[3:], np.array([0, 2]), 0.1)
    hundredth = DEGREE_KM / 100
    assert found[0][0] == pytest.approx(hundredth)
    assert found[1][0] == pytest.approx(hundredth)
    assert found[2][0] == 1 / 3
    same = kernels.local_distances(line[:3], np.array([0, 3]), line[:3], np.array([0, 3]), 0.1)
    assert [float(value[0]) for value in same] == [0, 0, 0]


def test_a_pair_does_not_depend_on_the_others() -> None:
    network, _ = random_network(60)
    real, made = random_trips(network, 40, seed=1), random_trips(network, 40, seed=2)
    together = measure_pairs(network, real, made)
    for k in (0, 17, 39):
        alone = measure_pairs(network, real.take(np.array([k])), made.take(np.array([k])))
        for name, values in vars(together).items():
            assert getattr(alone, name)[0] == values[k]


def test_measures_of_trips_follow_their_definitions() -> None:
    network, _ = random_network(40)
    trips = random_trips(network, 25)
    found = measure_trips(network, trips)
    for k in range(25):
        span = slice(trips.offsets[k], trips.offsets[k + 1])
        points, times = network.line_centroid[trips.roads[span]], trips.times[span]
        steps = [float(distances_km(a[None], b[None])[0, 0]) for a, b in itertools.pairwise(points)]
        to_middle = distances_km(points, points.mean(axis=0)[None])[:, 0]
        assert found.distance_km[k] == pytest.approx(sum(steps), rel=1e-9)
        assert found.radius_km[k] == pytest.approx(to_middle.mean(), rel=1e-9)
        assert found.radius_rms_km[k] == pytest.approx(math.sqrt((to_middle**2).mean()), rel=1e-9)
        assert found.duration_s[k] == times[-1] - times[0]
        segments = found.segment_s[found.segment_offsets[k] : found.segment_offsets[k + 1]]
        assert segments.tolist() == np.diff(times).tolist()


def test_a_trip_of_one_road_has_no_length() -> None:
    network, _ = random_network(10)
    found = measure_trips(network, trips_of([3], [1, 2], [4]))
    assert found.distance_km[[0, 2]].tolist() == [0, 0]
    assert found.radius_km[[0, 2]].tolist() == [0, 0]
    assert found.duration_s.tolist() == [0, 10, 0]
    assert found.segment_offsets.tolist() == [0, 0, 1, 1]


def test_same_routes() -> None:
    real, made = trips_of([1, 2, 3], [1, 2], [5], [7, 8]), trips_of([1, 2, 3], [1, 2, 3], [5], [7, 9])
    assert same_routes(real, made).tolist() == [True, False, True, False]
    assert same_routes(trips_of([1, 2]), trips_of([1])).tolist() == [False]


def test_cells_and_upstreams_matching() -> None:
    network, _ = random_network(30)
    cells = Cells.over(network)
    low = network.line_centroid.min(axis=0)
    place = np.floor((network.line_centroid - low) / 0.001)
    for a, b in itertools.combinations(range(30), 2):
        if place[[a, b]].max() < 9:  # the last rows and columns also take what lies on the bound
            assert (cells.of_road[a] == cells.of_road[b]) == (place[a] == place[b]).all()
    real = np.array([[1, 2], [3, 4], [1, 2], [1, 2], [5, 6]])
    made = np.array([[1, 2], [9, 9], [5, 6], [1, 2], [5, 6]])
    left, right = shared_cell_pairs(real, made)
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 0), (2, 3), (4, 2)]
    nothing = np.zeros((0, 2), np.int64)
    assert len(shared_cell_pairs(real, nothing)[0]) == len(shared_cell_pairs(nothing, made)[0]) == 0


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_divergence_is_scipys(counts: list[int], seed: int) -> None:
    p, q = np.array(counts, float), np.random.default_rng(seed).integers(0, 9, len(counts)).astype(float)
    found = float(jensen_shannon_nats(p, q))
    if p.sum() == 0 or q.sum() == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(scipy.spatial.distance.jensenshannon(p, q) ** 2, abs=1e-12)
        assert 0 <= found <= math.log(2) + 1e-12
        assert found == pytest.approx(float(jensen_shannon_nats(q, p)), abs=1e-15)


def test_bins_are_upstreams() -> None:
    """numpy's histogram over 100 finite edges and infinity."""
    random = np.random.default_rng(0)
    real, made = random.exponential(size=500), 1.5 * random.exponential(size=400)
    edges = edges_of(real)
    for values in (real, made):
        expected, _ = np.histogram(values, np.append(np.linspace(0, real.max(), 100), np.inf))
        assert totals(Values.one_each(values).binned(edges)).tolist() == expected.tolist()
    assert edges_of(np.zeros(3))[-1] == 1


def test_next_road_metrics_by_hand() -> None:
    """Two trips, three positions; the last one's road is not among its candidates."""
    trips = Trips(
        np.array([0, 1, 2, 5, 6], np.int32), np.array([0, 10, 40, 100, 107]), np.array([0, 3, 5]), np.arange(2)
    )
    arrays = {
        "trip": np.array([0, 0, 1]),
        "step": np.array([0, 1, 0]),
        "candidate_offsets": np.array([0, 2, 5, 6]),
        "label": np.array([1, 0, -100]),
        "logit": np.log(np.array([0.25, 0.75, 0.2, 0.5, 0.3, 1.0])).astype(np.float32),
        "seconds": np.array([1, 12, 25, 2, 3, 4], np.float32),
    }
    found = next_road.positions_of(arrays, trips)
    assert found.is_hit.tolist() == [True, False, False]
    assert found.confidence == pytest.approx([0.75, 0.5, 1.0], rel=1e-6)
    assert found.nll_nats[:2] == pytest.approx([-math.log(0.75), -math.log(0.2)], rel=1e-6)
    assert math.isnan(found.nll_nats[2])
    assert found.seconds.tolist() == [10, 30, 7]
    assert found.seconds_error[:2].tolist() == [2, -5]
    sums, counts = next_road.per_trip(found, found.nll_nats, 2)
    assert counts.tolist() == [2, 0]
    assert sums[0] == pytest.approx(-math.log(0.15), rel=1e-6)
    binned = next_road.binned_confidence(found, 3, 2)
    curve = next_road.reliability(binned.sum(axis=0))
    assert curve["confidence"] == pytest.approx([0.5, 0.875], rel=1e-6)
    assert curve["accuracy"] == pytest.approx([0.0, 0.5])
    assert curve["count"] == [1, 2]
    assert next_road.expected_calibration_error(binned.sum(axis=0)) == pytest.approx((0.5 + 0.75) / 3, rel=1e-6)


def test_floors_are_those_of_prepare(tmp_path: Path) -> None:
    """On the validation split, where `prepare` measures them, every rule hits as often, to the last step."""
    make_city(DemoCityConfig.model_validate({"out": tmp_path / "raw", "columns": 9, "rows": 9, "trips": TRIPS}))
    prepare(PrepareConfig.model_validate({"raw": tmp_path / "raw", "out": tmp_path / "store", "zones": {"count": 4}}))
    store = Store(tmp_path / "store")
    network, trips = RoadNetwork.load(store), store.trips("val")
    steps = ragged.positions(trips.lengths - 1)
    trip = np.repeat(np.arange(len(trips)), trips.lengths - 1)
    degree = np.diff(network.successor_offsets)[trips.roads[trips.offsets[trip] + steps]]
    unknown = np.full(len(trip), np.nan)
    positions = next_road.Positions(trip, steps, degree > 1, degree > 1, unknown, unknown, unknown, unknown)
    found = floors.measure(network, store.trips("train"), trips, positions)
    manifest = json.loads((store.path / "store.json").read_text())["floors"]
    single = manifest.pop("single_successor")
    assert {name: floor.values["next_road_accuracy"] for name, floor in found.items()} == manifest
    assert 0 < single < 1
    for floor in found.values():  # where there is no choice, every rule is right
        every, choice = (floor.values[f"next_road{part}accuracy"] for part in ("_", "_choice_"))
        assert every is not None and choice is not None
        assert every == pytest.approx(single + (1 - single) * choice)


def test_steps_without_a_choice_are_left_out() -> None:
    """Of three steps the second has one candidate; it is right, and not counted where there is a choice."""
    arrays = {
        "trip": np.array([0, 0, 0]), "step": np.arange(3), "label": np.array([0, 0, 1]),
        "candidate_offsets": np.array([0, 2, 3, 5]), "logit": np.array([2.0, 1.0, 0.0, 3.0, 1.0]),
        "seconds": np.zeros(5),
    }  # fmt: skip
    positions = next_road.positions_of(arrays, trips_of([0, 1, 2, 3]))
    (metric,) = (metric for metric in next_road.METRICS if metric.name == "next_road_choice_accuracy")
    sums, counts = next_road.per_trip(positions, metric.measure(positions), 1)
    assert (positions.is_hit.tolist(), sums.tolist(), counts.tolist()) == ([True, True, False], [1.0], [2.0])
