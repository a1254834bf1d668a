"""Batches against the definitions, one trip, step and candidate at a time, in float64."""

from __future__ import annotations

import dataclasses
import datetime
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from shared.store import Trips
from student_trainer.data import geometry
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork

EARTH_RADIUS_M = 6_371_008.8


def metres(a: np.ndarray, b: np.ndarray) -> float:
    """Great-circle distance by the spherical law of cosines, another formula than the code's."""
    lat1, lng1, lat2, lng2 = map(math.radians, (*a, *b))
    cosine = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(lng2 - lng1)
    return EARTH_RADIUS_M * math.acos(min(1.0, cosine))


def direction(a: np.ndarray, b: np.ndarray) -> float:
    """Upstream's direction with latitude and longitude swapped: atan2(dlng, cos(lng) dlat)."""
    return math.atan2(b[1] - a[1], math.cos(math.radians(a[1])) * (b[0] - a[0]))


def angle_between(a: float, b: float) -> float:
    return abs(math.remainder(a - b, 2 * math.pi)) / math.pi


def successors_of(network: RoadNetwork, road: int) -> list[int]:
    return network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]].tolist()


def check_trip(network: RoadNetwork, trips: Trips, trip: int, batch: Batch, row: int, top_k: int) -> None:
    roads = trips.roads[trips.offsets[trip] : trips.offsets[trip + 1]].tolist()
    times = trips.times[trips.offsets[trip] : trips.offsets[trip + 1]].tolist()
    steps, destination = len(roads) - 1, roads[-1]
    clock = [datetime.datetime.fromtimestamp(t, datetime.UTC) for t in times[:-1]]
    sign = -1 if clock[0].weekday() >= 5 else 1
    time_of_day = [sign * (c.hour * 60 + c.minute + c.second / 60) / 1440 for c in clock]
    assert batch.length[row] == steps
    assert batch.destination[row] == destination
    assert batch.road[row, :steps].tolist() == roads[:-1]
    np.testing.assert_allclose(batch.temporal[row, :steps], time_of_day, atol=1e-6)
    for i in range(steps):
        for j in range(i + 1):
            far = metres(network.line_centroid[roads[i]], network.line_centroid[roads[j]]) if i != j else 0
            assert batch.distance[row, i, j].item() == pytest.approx(min(far, 1000) / 1000, abs=2e-4)
            late = abs(time_of_day[i] - time_of_day[j]) * 1440
            assert batch.interval[row, i, j].item() == pytest.approx(min(late, 5) / 5, abs=1e-4)
    assert not batch.road[row, steps:].any() and not batch.temporal[row, steps:].any()
    for pairs in (batch.distance[row], batch.interval[row]):
        assert not pairs.triu(1).any() and not pairs[steps:].any()

    first = int(batch.length[:row].sum())
    starts = ragged.offsets(batch.candidate_length.numpy())
    for step in range(steps):
        position = first + step
        candidates = successors_of(network, roads[step])
        away = [metres(network.line_centroid[c], network.line_centroid[destination]) for c in candidates]
        detour = [math.log1p((d - min(away)) / 100) for d in away]
        nearest = sorted(range(len(candidates)), key=lambda i: (np.float32(away[i]), i))[: top_k or None]
        kept = [i for i in range(len(candidates)) if i in nearest]
        part = slice(starts[position], starts[position + 1])
        assert batch.candidate_road[part].tolist() == [candidates[i] for i in kept]
        assert batch.candidate_token[part].tolist() == [network.road_token[candidates[i]] for i in kept]
        np.testing.assert_allclose(batch.candidate_distance[part], [detour[i] for i in kept], atol=2e-3)
        to_destination = direction(network.end_vertex[roads[step]], network.end_vertex[destination])
        for place, i in enumerate(kept):
            if candidates[i] in (roads[step],) or destination == roads[step]:
                continue  # no direction to itself
            turn = angle_between(
                direction(network.end_vertex[roads[step]], network.end_vertex[candidates[i]]), to_destination
            )
            assert batch.candidate_angle[part][place].item() == pytest.approx(turn, abs=1e-5)
        true = candidates.index(roads[step + 1])
        assert batch.label[position].item() == (kept.index(true) if true in kept else -100)
        assert batch.seconds[position].item() == times[step + 1] - times[step]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0, 1, 2, 4, 5, 64]))
def test_batch_matches_the_definitions(seed: int, top_k: int) -> None:
    """Out-degrees are 1 to 5, so top_k lies below, at and above them."""
    network, _ = random_network(seed=seed)
    trips = random_trips(network, 6, seed=seed)
    index = np.array([4, 0, 5])
    batch = build_batch(network, trips, index, top_k)
    assert batch.trips.tolist() == index.tolist()
    for row, trip in enumerate(index):
        check_trip(network, trips, int(trip), batch, row, top_k)


def test_top_k_is_the_identity_up_to_the_out_degree() -> None:
    network, _ = random_network()
    trips = random_trips(network, 20)
    everything = build_batch(network, trips, np.arange(20))
    for top_k in (5, 64):
        same = build_batch(network, trips, np.arange(20), top_k)
        for name in ("candidate_length", "candidate_road", "candidate_distance", "candidate_angle", "label"):
            assert getattr(same, name).equal(getattr(everything, name))


def test_nearest_candidate_is_exactly_zero() -> None:
    network, _ = random_network()
    batch = build_batch(network, random_trips(network, 20), np.arange(20))
    lowest = np.minimum.reduceat(batch.candidate_distance.numpy(), ragged.offsets(batch.candidate_length.numpy())[:-1])
    assert (lowest == 0).all()


def test_cropping_keeps_the_last_steps_of_everything() -> None:
    """A cropped trip is the tail of the whole one: lengths, labels and candidates agree (upstream's did not)."""
    network, _ = random_network()
    trips = random_trips(network, 8, longest=20)
    whole, cropped = (build_batch(network, trips, np.arange(8), max_steps=steps) for steps in (0, 5))
    assert cropped.length.tolist() == whole.length.clamp(max=5).tolist()
    starts, short = ragged.offsets(whole.length.numpy()), ragged.offsets(cropped.length.numpy())
    for trip in range(8):
        kept = int(cropped.length[trip])
        tail = slice(starts[trip + 1] - kept, starts[trip + 1])
        ours = slice(short[trip], short[trip + 1])
        assert cropped.label[ours].equal(whole.label[tail])
        assert cropped.seconds[ours].equal(whole.seconds[tail])
        steps = int(whole.length[trip])
        assert cropped.road[trip, :kept].equal(whole.road[trip, steps - kept : steps])
        assert cropped.temporal[trip, :kept].equal(whole.temporal[trip, steps - kept : steps])
    assert cropped.road.shape[1] == 5


def trip_over(points: np.ndarray) -> tuple[RoadNetwork, Trips]:
    """A trip over roads at the given latitudes and longitudes, and back to the first."""
    network, _ = random_network(num_roads=len(points))
    roads = np.arange(len(points) + 1) % len(points)
    trips = Trips(roads.astype(np.int32), np.arange(len(roads)), np.array([0, len(roads)]), np.zeros(1, np.int64))
    return dataclasses.replace(network, line_centroid=points), trips


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([(0, 0), (0, 180), (37.8, -122.4), (-89.998, 12), (90, 0)]),
    st.sampled_from([1e-6, 1e-3, 0.02, 1, 40]),
    st.integers(0, 1000),
)
def test_distances_equal_the_vectorised_formula(centre: tuple[float, float], spread: float, seed: int) -> None:
    """Within float32's last bit, all over the globe, also where the series of small angles do not reach."""
    points = np.array(centre) + spread * np.random.default_rng(seed).uniform(-1, 1, (12, 2))
    points[:, 0] = points[:, 0].clip(-90, 90)
    points[:, 1] = (points[:, 1] + 180) % 360 - 180
    network, trips = trip_over(points)
    batch = build_batch(network, trips, np.array([0]))
    metres = geometry.haversine_m(points[:, None, 0], points[:, None, 1], points[None, :, 0], points[None, :, 1])
    expected = np.tril(metres.clip(0, 1000) / 1000).astype(np.float32)
    np.testing.assert_array_max_ulp(batch.distance[0].numpy(), expected, maxulp=1)
    assert (batch.distance[0].numpy() == expected).mean() > 0.98


def test_a_trip_is_the_same_in_any_company() -> None:
    network, _ = random_network()
    trips = random_trips(network, 10)
    alone = build_batch(network, trips, np.array([7]))
    together = build_batch(network, trips, np.arange(10))
    start, steps = int(together.length[:7].sum()), int(alone.length[0])
    assert alone.label.equal(together.label[start : start + steps])
    assert alone.distance[0].equal(together.distance[7, :steps, :steps])
