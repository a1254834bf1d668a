"""The ways that remain, against all shortest ways by Floyd and Warshall's method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from shared.store import Trips
from student_trainer.data import shortest_ways
from student_trainer.data.network import RoadNetwork
from student_trainer.data.shortest_ways import FARTHEST_M, no_farther, remaining_ways, ways_to

ROADS = 20


def city(seed: int, farthest: float) -> tuple[RoadNetwork, np.ndarray]:
    """A sparse network, some of whose roads lead into a part that nothing leaves, and metres of its roads."""
    network, _ = random_network(ROADS, seed=seed, max_degree=3)
    trap = np.arange(ROADS - 4, ROADS)
    of_trap = ragged.rows(np.diff(network.successor_offsets)) >= trap[0]
    network.successors[of_trap] = trap[network.successors[of_trap] % len(trap)]
    length = np.random.default_rng((seed, 5)).uniform(1, farthest, ROADS)
    length[0] = 0.0
    return network, length


def by_floyd_and_warshall(network: RoadNetwork, length: np.ndarray) -> np.ndarray:
    """Metres from entering a road to the end of another, [from, to]; infinite without a way."""
    metres = np.full((ROADS, ROADS), np.inf)
    np.fill_diagonal(metres, 0.0)
    for road in range(ROADS):
        for following in network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]:
            if following != road:
                metres[road, following] = length[following]
    for middle in range(ROADS):
        metres = np.minimum(metres, metres[:, [middle]] + metres[[middle], :])
    return length[:, None] + metres


def expected_of(network: RoadNetwork, length: np.ndarray, trips: Trips) -> np.ndarray:
    """Of every candidate of every position, one by one."""
    ways, found = by_floyd_and_warshall(network, length), []
    for start, end in zip(trips.offsets[:-1], trips.offsets[1:], strict=True):
        roads = trips.roads[start:end]
        for road in roads[:-1]:
            candidates = network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]
            metres = [ways[candidate, roads[-1]] for candidate in candidates]
            found += [min(value, min(metres) + FARTHEST_M) for value in metres]
    return np.array(found)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([200.0, 4_000.0]))
def test_ways_are_the_shortest_and_no_detour_is_endless(seed: int, farthest: float) -> None:
    """With dead ends, a road of no length, and detours that are cut."""
    network, length = city(seed, farthest)
    trips = random_trips(network, 12, seed)
    found = remaining_ways(network, length, trips)
    assert found.metres.dtype == np.float32
    np.testing.assert_allclose(found.metres, expected_of(network, length, trips), rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(
        ways_to(network, length, np.arange(ROADS)).T, by_floyd_and_warshall(network, length), rtol=1e-6, atol=1e-3
    )


def test_some_ways_are_cut_and_some_lead_nowhere() -> None:
    """The property above would say little otherwise."""
    network, length = city(3, 4_000.0)
    trips = random_trips(network, 12, 3)
    found, ways = remaining_ways(network, length, trips).metres, by_floyd_and_warshall(network, length)
    assert np.isinf(ways).any()
    degree = np.diff(network.successor_offsets)[trips.roads[ragged.slices(trips.offsets[:-1], trips.lengths - 1)]]
    nearest = np.repeat(np.minimum.reduceat(found, ragged.offsets(degree)[:-1]), degree)
    assert (found == nearest + np.float32(FARTHEST_M)).any() and (found - nearest < FARTHEST_M - 1).sum() > 20


@pytest.mark.parametrize("sources", [1, 3, 1000])
def test_how_many_are_searched_at_once_changes_no_bit(monkeypatch: pytest.MonkeyPatch, sources: int) -> None:
    network, length = city(0, 2_000.0)
    trips = random_trips(network, 40, 0)
    expected = remaining_ways(network, length, trips).metres, ways_to(network, length, np.arange(ROADS))
    monkeypatch.setattr(shortest_ways, "SOURCES", sources)
    assert np.array_equal(remaining_ways(network, length, trips).metres, expected[0])
    assert np.array_equal(ways_to(network, length, np.arange(ROADS)), expected[1])


@given(st.lists(st.integers(0, 11), min_size=1, max_size=8), st.integers(0, 99))
def test_the_last_steps_of_some_trips_are_taken(numbers: list[int], seed: int) -> None:
    """In the order asked for; as a batch keeps the last steps of long trips."""
    network, length = city(1, 500.0)
    trips, index = random_trips(network, 12, 1), np.array(numbers)
    ways = remaining_ways(network, length, trips)
    kept = np.random.default_rng(seed).integers(1, trips.lengths[index])
    expected = []
    for trip, steps in zip(index, kept, strict=True):
        end = trips.offsets[trip + 1]
        alone = Trips(
            trips.roads[end - 1 - steps : end],
            trips.times[end - 1 - steps : end],
            np.array([0, steps + 1]),
            np.zeros(1, np.int64),
        )
        expected.append(remaining_ways(network, length, alone).metres)
    assert np.array_equal(ways.take(index, kept), np.concatenate(expected))


@given(st.lists(st.lists(st.floats(0, 1e5, width=32), min_size=1, max_size=4), min_size=1, max_size=6))
def test_no_candidate_is_farther_than_the_nearest_and_so_much(rows: list[list[float]]) -> None:
    way = np.concatenate([np.array(row, np.float32) for row in rows])
    expected = [np.minimum(np.float32(v), np.float32(min(row)) + np.float32(FARTHEST_M)) for row in rows for v in row]
    assert no_farther(way, np.array([len(row) for row in rows])).tolist() == [float(value) for value in expected]
    assert no_farther(np.array([7.0, np.inf], np.float32), np.array([2])).tolist() == [7.0, 7.0 + FARTHEST_M]
