"""The searches against plain ones in float64, and against all paths where these can be counted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network
from support.students import both_ways, random_model, random_pairs

from benchmarks.straightforward import generate as plain
from shared import ragged
from student_trainer.data import graph
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import workers
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.best_first import BestFirstSearch
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.found import Found
from student_trainer.generate.pairs import Pairs
from student_trainer.model.device import one_thread
from student_trainer.model.hoser import HOSER
from student_trainer.model.incremental import IncrementalStudent

Kind = type[BeamSearch] | type[BestFirstSearch]


def search(
    kind: Kind,
    student: IncrementalStudent,
    pairs: Pairs,
    lanes: int = 16,
    todo: list[int] | None = None,
    **rules: object,
) -> list[Found]:
    """Trips of all pairs, by pair."""
    found = kind(student, pairs, SearchConfig.model_validate(rules), lanes)
    with one_thread():
        trips = list(found.run(range(len(pairs)) if todo is None else todo))
    return sorted(trips, key=lambda trip: trip.pair)


def arguments(pairs: Pairs, pair: int) -> tuple[int, int, int]:
    return int(pairs.origin[pair]), int(pairs.destination[pair]), int(pairs.departure[pair])


def assert_same(found: Found, expected: plain.Path | None) -> None:
    assert (found.status == "arrived") == (expected is not None)
    if expected is not None:
        assert found.roads.tolist() == expected.roads
        assert found.log_prob == pytest.approx(expected.log_prob, abs=1e-5)
        assert np.abs(found.times - expected.times).max() <= len(expected.times)  # a rounding may fall either way


@pytest.mark.parametrize("repeats", ["best", "never", "any"])
@pytest.mark.parametrize(("finish", "power"), [("first", 1.0), ("normalised", 1.0), ("normalised", 0.0)])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_beam_search_is_the_plain_one(width: int, finish: str, power: float, repeats: str) -> None:
    network, _ = random_network(16, seed=width, max_degree=3)
    ours, reference = both_ways(network, random_model(network, seed=width))
    pairs = random_pairs(network, 12, seed=width)
    rules: dict[str, Any] = {
        "width": width,
        "finish": finish,
        "length_power": power,
        "repeats": repeats,
        "max_steps": 10,
    }
    found = search(BeamSearch, ours, pairs, **rules)
    for trip in found:
        assert_same(trip, plain.beam_search(reference, plain.Rules(**rules), *arguments(pairs, trip.pair)))
    assert len(found) == 12 and sum(trip.status == "arrived" for trip in found) >= 3


def test_one_beam_is_greedy() -> None:
    network, _ = random_network(20, seed=9, max_degree=4)
    ours, reference = both_ways(network, random_model(network, seed=9))
    pairs = random_pairs(network, 20)
    for trip in search(BeamSearch, ours, pairs, width=1, finish="first", max_steps=12):
        origin, destination, departure = arguments(pairs, trip.pair)
        path = plain.Path([origin], [departure], 0.0)
        while path.roads[-1] != destination and len(path.roads) <= 12:
            (choices,) = reference.choices([path], destination)
            options = [i for i, road in enumerate(choices.road) if road not in path.roads]
            if not options:
                break
            best = max(options, key=lambda i: choices.log_prob[i])
            path = plain.Path(
                [*path.roads, choices.road[best]],
                [*path.times, path.times[-1] + choices.seconds[best]],
                path.log_prob + choices.log_prob[best],
            )
        arrived = path.roads[-1] == destination
        assert_same(trip, path if arrived else None)
        if not arrived:
            assert trip.roads.tolist() == path.roads[: len(trip.roads)]


def all_paths(
    student: plain.Student, network: RoadNetwork, origin: int, destination: int, departure: int, loops: bool, most: int
) -> Iterator[plain.Path]:
    """Every way of up to `most` steps."""
    open_paths = [plain.Path([origin], [departure], 0.0)]
    for _ in range(most):
        children = []
        for path in open_paths:
            (choices,) = student.choices([path], destination)
            for road, log_prob, seconds in zip(choices.road, choices.log_prob, choices.seconds, strict=True):
                if loops or road not in path.roads:
                    child = plain.Path(
                        [*path.roads, road], [*path.times, path.times[-1] + seconds], path.log_prob + log_prob
                    )
                    children.append(child)
        yield from (path for path in children if path.roads[-1] == destination)
        open_paths = [path for path in children if path.roads[-1] != destination]


@pytest.mark.parametrize(("repeats", "most"), [("never", 7), ("any", 5)])
@pytest.mark.parametrize("seed", range(4))
def test_best_first_finds_the_most_probable_of_all_paths(seed: int, repeats: str, most: int) -> None:
    network, _ = random_network(8, seed=seed, max_degree=3)
    ours, reference = both_ways(network, random_model(network, seed=seed))
    pairs = random_pairs(network, 6, seed=seed)
    for trip in search(BestFirstSearch, ours, pairs, repeats=repeats, max_steps=most):
        paths = all_paths(reference, network, *arguments(pairs, trip.pair), repeats == "any", most)
        assert_same(trip, max(paths, key=lambda path: path.log_prob, default=None))


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_never_exceeds_what_is_left(seed: int) -> None:
    """At every step of every path; and it says something."""
    network, _ = random_network(8, seed=seed, max_degree=3)
    ours, reference = both_ways(network, random_model(network, seed=seed, gain=0.5))
    pairs = random_pairs(network, 4, seed=seed)
    highest = 0.0
    for one in range(4):
        origin, destination, departure = arguments(pairs, one)
        candidates, cost = ours.least_costs(destination)
        assert (cost >= -1e-9).all() and (cost[np.repeat(candidates.length == 1, candidates.length)] < 1e-9).all()
        left = graph.costs_to(destination, candidates.length, candidates.road, cost)
        for path in all_paths(reference, network, origin, destination, departure, True, 4):
            passed = 0.0
            for number, road in enumerate(path.roads[:-1]):
                assert left[road] <= passed - path.log_prob + 1e-5
                prefix = plain.Path(path.roads[: number + 1], path.times[: number + 1], 0.0)
                (choices,) = reference.choices([prefix], destination)
                passed += choices.log_prob[choices.road.index(path.roads[number + 1])]
            highest = max(highest, left[origin])
    assert highest > 0.3


@pytest.mark.parametrize("repeats", ["never", "any"])
def test_the_bound_changes_no_trip_and_expands_no_more(repeats: str) -> None:
    network, _ = random_network(10, seed=2, max_degree=3)
    ours, _ = both_ways(network, random_model(network, seed=2, gain=0.7))
    pairs = random_pairs(network, 20)
    plainly, bound = (
        search(BestFirstSearch, ours, pairs, repeats=repeats, heuristic=heuristic, max_steps=9)
        for heuristic in ("none", "bound")
    )
    for a, b in zip(plainly, bound, strict=True):
        assert (a.status, a.roads.tolist(), a.log_prob) == (b.status, b.roads.tolist(), b.log_prob)
    assert sum(trip.expanded for trip in bound) < 0.9 * sum(trip.expanded for trip in plainly)


def forgetful(model: HOSER) -> HOSER:
    """The model with probabilities that do not depend on the path before."""
    width = 2 * model.config.road_dim
    with torch.no_grad():
        model.navigator.q_proj.weight[:, :width] = 0
    return model


@pytest.mark.parametrize("seed", range(4))
def test_going_on_from_each_road_once_is_exact_where_the_path_before_does_not_matter(seed: int) -> None:
    network, _ = random_network(8, seed=seed, max_degree=3)
    ours, reference = both_ways(network, forgetful(random_model(network, seed=seed)))
    pairs = random_pairs(network, 6, seed=seed)
    for trip in search(BestFirstSearch, ours, pairs, repeats="best", max_steps=7):
        paths = all_paths(reference, network, *arguments(pairs, trip.pair), False, 7)
        assert_same(trip, max(paths, key=lambda path: path.log_prob, default=None))


def test_where_the_path_before_matters_it_is_not_exact_and_never_better() -> None:
    losses = []
    for seed in range(6):
        network, _ = random_network(12, seed=seed, max_degree=4)
        ours, _ = both_ways(network, random_model(network, seed=seed))
        pairs = random_pairs(network, 20, seed=seed)
        once, every = (search(BestFirstSearch, ours, pairs, repeats=repeats) for repeats in ("best", "never"))
        for a, b in zip(once, every, strict=True):
            assert a.status == b.status
            if a.status == "arrived" and a.log_prob is not None and b.log_prob is not None:
                losses.append(b.log_prob - a.log_prob)
    assert min(losses) >= 0 and max(losses) > 1e-3
    assert np.mean(np.array(losses) == 0) > 0.5


@settings(deadline=None, max_examples=10)
@given(st.data())
@pytest.mark.parametrize("kind", [BeamSearch, BestFirstSearch])
def test_a_trip_does_not_depend_on_the_others(kind: Kind, data: st.DataObject) -> None:
    """Alone, among any others, in any order, with any number under way, in any thread: the same bits."""
    _, ours, pairs = CITY
    rules = {"max_steps": 20, "max_expanded": 60}
    todo = data.draw(st.lists(st.integers(0, len(pairs) - 1), unique=True, min_size=1))
    lanes, threads = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    searches = [kind(ours, pairs, SearchConfig.model_validate(rules), lanes) for _ in range(threads)]
    expected = {trip.pair: trip for trip in search(kind, ours, pairs, lanes=1, todo=todo, **rules)}
    found = list(workers.search([one.run for one in searches], todo))
    assert sorted(trip.pair for trip in found) == sorted(todo)
    for trip in found:
        same = expected[trip.pair]
        assert (trip.status, trip.log_prob, trip.expanded) == (same.status, same.log_prob, same.expanded)
        assert trip.roads.tolist() == same.roads.tolist() and trip.times.tolist() == same.times.tolist()


def city() -> tuple[RoadNetwork, IncrementalStudent, Pairs]:
    network, _ = random_network(60, seed=11)
    ours, _ = both_ways(network, random_model(network, seed=11))
    return network, ours, random_pairs(network, 40, seed=11)


CITY = city()


def network_of(successors: list[list[int]]) -> RoadNetwork:
    """A random network with these successors."""
    network, _ = random_network(max(4, len(successors)), seed=1)
    return dataclasses.replace(
        network,
        successors=np.array(list(itertools.chain(*successors)), np.int32),
        successor_offsets=ragged.offsets(np.array([len(roads) for roads in successors])),
    )


def pair(origin: int, destination: int) -> Pairs:
    one = np.zeros(1, np.int64)
    return Pairs(one, one, one + origin, one + destination, one + 1_704_715_200)


@pytest.mark.parametrize("kind", [BeamSearch, BestFirstSearch])
def test_why_a_trip_has_not_arrived(kind: Kind) -> None:
    # 0 -> 1 -> 2 -> 3 -> 4, and 1 -> 5 with nothing behind it
    network = network_of([[1], [2, 5], [3], [4], [], []])
    ours, _ = both_ways(network, random_model(network))
    (arrived,) = search(kind, ours, pair(0, 4), width=2)
    assert arrived.status == "arrived" and arrived.roads.tolist() == [0, 1, 2, 3, 4]
    (short,) = search(kind, ours, pair(0, 4), width=2, max_steps=3)
    assert short.status == "step_limit"
    assert len(short.roads) <= 4 and short.roads[0] == 0
    (late,) = search(kind, ours, pair(0, 4), width=2, max_seconds=1e-9)
    assert late.status == "time_limit" and late.roads.tolist() == [0]
    (dead,) = search(kind, ours, pair(5, 4), width=2)
    assert dead.status == "dead_end" and dead.roads.tolist() == [5] and dead.log_prob == 0
    if kind is BestFirstSearch:
        (tired,) = search(kind, ours, pair(0, 4), max_expanded=2)
        assert tired.status == "step_limit" and tired.expanded == 2


def test_a_trip_that_has_not_arrived_is_the_path_that_came_nearest() -> None:
    network, ours, pairs = CITY
    for trip in search(BeamSearch, ours, pairs, max_steps=2):
        if trip.status == "arrived":
            continue
        goal = network.line_centroid[pairs.destination[trip.pair]]
        away = np.linalg.norm((network.line_centroid - goal) * [1, np.cos(np.radians(50))], axis=1)
        assert away[trip.roads[-1]] <= away[trip.roads].min() + 1e-12
        assert len(trip.times) == len(trip.roads) and (np.diff(trip.times) >= 0).all()


def test_an_error_in_a_thread_is_raised() -> None:
    def broken(todo: object) -> Iterator[Found]:
        raise RuntimeError("broken")
        yield

    with pytest.raises(RuntimeError, match="broken"):
        list(workers.search([broken, broken], range(3)))
