"""Reachability, shortest ways, OD pairs and the paces of road classes."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from shared.errors import DataError
from shared.store import Trips
from student_trainer.data import graph
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import pairs
from student_trainer.generate.shortest import class_paces


def sparse_network(seed: int) -> RoadNetwork:
    """A random network in several parts, with dead ends."""
    network, _ = random_network(14, seed=seed)
    rng = np.random.default_rng(seed)
    successors = [rng.permutation(14)[: rng.integers(0, 3)] for _ in range(14)]
    return dataclasses.replace(
        network,
        successors=np.concatenate(successors).astype(np.int32),
        successor_offsets=ragged.offsets(np.array([len(roads) for roads in successors])),
    )


def distances(network: RoadNetwork, length: np.ndarray) -> np.ndarray:
    """Length of the shortest way between all roads but the first's own, by Floyd and Warshall."""
    size = network.num_roads
    metres = np.full((size, size), np.inf)
    np.fill_diagonal(metres, 0)
    for road in range(size):
        for other in network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]:
            if other != road:
                metres[road, other] = length[other]
    for middle in range(size):
        metres = np.minimum(metres, metres[:, [middle]] + metres[[middle]])
    return metres


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_ways_are_the_shortest_and_exist_where_there_is_one(seed: int) -> None:
    network = sparse_network(seed)
    length = np.random.default_rng(seed).choice([0.0, 1.0, 5.0, 20.0], 14)
    origin, destination = (array.ravel() for array in np.meshgrid(np.arange(14), np.arange(14)))
    expected = distances(network, length)[origin, destination]
    np.testing.assert_array_equal(graph.reachable(network, origin, destination), np.isfinite(expected))
    for way, first, last, metres in zip(
        graph.shortest_paths(network, length, origin, destination), origin, destination, expected, strict=True
    ):
        if np.isinf(metres):
            assert len(way) == 0
            continue
        assert way[0] == first and way[-1] == last
        for a, b in itertools.pairwise(way):
            assert b in network.successors[network.successor_offsets[a] : network.successor_offsets[a + 1]]
        assert length[way[1:]].sum() == pytest.approx(metres, abs=1e-4)


def test_more_destinations_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = random_network(30)
    length = np.random.default_rng(0).uniform(1, 9, 30)
    origin, destination = np.zeros(30, np.int64), np.arange(30)[::-1]
    expected = graph.shortest_paths(network, length, origin, destination)
    monkeypatch.setattr(graph, "SOURCES", 7)
    for ours, theirs in zip(graph.shortest_paths(network, length, origin, destination), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_draw_is_without_replacement_and_begins_with_a_shorter_one(caplog: pytest.LogCaptureFixture) -> None:
    network, _ = random_network()
    trips = random_trips(network, 50)
    drawn = pairs.draw(trips, 30, 7, "test")
    assert len(np.unique(drawn.trip)) == 30
    np.testing.assert_array_equal(pairs.draw(trips, 10, 7, "test").trip, drawn.trip[:10])
    assert pairs.draw(trips, 30, 8, "test").trip.tolist() != drawn.trip.tolist()
    np.testing.assert_array_equal(pairs.draw(trips, 0, 7, "test").trip, np.arange(50))
    for number, trip in enumerate(drawn.trip):
        part = slice(trips.offsets[trip], trips.offsets[trip + 1])
        assert (drawn.origin[number], drawn.destination[number]) == (trips.roads[part][0], trips.roads[part][-1])
        assert drawn.departure[number] == trips.times[part][0]
        assert drawn.row[number] == trips.source_rows[trip]
    with caplog.at_level("INFO"):
        most = pairs.draw(trips, 51, 7, "test")
    assert "the test split has 50 trips, fewer than pairs=51: OD pairs of all of them" in caplog.text
    assert most.trip[:30].tolist() == drawn.trip.tolist() and sorted(most.trip) == list(range(50))
    empty = Trips(trips.roads[:0], trips.times[:0], trips.offsets[:1], trips.source_rows[:0])
    with pytest.raises(DataError, match="the test split has no trips"):
        pairs.draw(empty, 0, 7, "test")


def test_a_class_has_the_pace_of_its_trips() -> None:
    network, _ = random_network(4)
    network = dataclasses.replace(network, attr_type=np.array([0, 0, 1, 2]))
    length = np.array([100.0, 50.0, 10.0, 1.0])
    # road 0 takes 10 s, road 1 takes 20 s, road 2 takes 3 s; nobody says what 3 takes
    trips = Trips(
        np.array([0, 1, 2, 3, 2, 3], np.int32), np.array([0, 10, 30, 32, 5, 9]), np.array([0, 4, 6]), np.arange(2)
    )
    np.testing.assert_allclose(class_paces(network, length, trips), [30 / 150, 30 / 150, 6 / 20, 36 / 170])
