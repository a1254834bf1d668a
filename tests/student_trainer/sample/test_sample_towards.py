"""Walks towards destinations: the target that training uses, and where walkers go and arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import chisquare
from support.random_city import write_random_store
from support.walked_city import WeighingTeacher

from shared import ragged
from shared.arrays import Float16, Float64
from shared.store import Store, Trips
from shared.wire import ScoreQuery
from student_trainer.data import graph
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.data.shortest_ways import remaining_ways
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.destination import DestinationTarget, choices_of, features_of
from student_trainer.distill.query import build_query
from student_trainer.sample.policy import End
from student_trainer.sample.towards import DestinationPolicy, make_policy, plane

WINDOW = DistillConfig(window=2, history="window")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store")


@pytest.fixture(scope="module")
def policy(store: Store) -> DestinationPolicy:
    network = RoadNetwork.load(store)
    teacher = WeighingTeacher(store.tokeniser.vocabulary.size)
    origin = np.cumsum(np.ones(network.num_roads))
    trips = store.trips("train"), store.trips("val")
    return make_policy(teacher, network, store.network("length"), *trips, origin, WINDOW, 3)


def asked(store: Store, network: RoadNetwork, trips: Trips) -> tuple[Batch, ScoreQuery, Float16, Float64]:
    """What training asks about trips, the answers, and the features."""
    batch = build_batch(network, trips, np.arange(len(trips)))
    query = build_query(batch, network, WINDOW)
    log_q = WeighingTeacher(store.tokeniser.vocabulary.size).submit(query).result().log_probs
    ways = remaining_ways(network, store.network("length"), trips)
    return batch, query, log_q, features_of(batch, ways.take(np.arange(len(trips)), batch.length.numpy()))


def test_it_is_the_target_of_training(store: Store, policy: DestinationPolicy) -> None:
    """Fitted on the same trips, and at every position of labelled trips with the same probabilities."""
    network, trips = policy.network, store.trips("train")
    batch, _, log_q, features = asked(store, network, store.trips("val"))
    target, _ = DestinationTarget.fitted(choices_of(batch, features, log_q))
    np.testing.assert_allclose(policy.coefficients, target.coefficients, rtol=1e-9)
    batch, query, log_q, features = asked(store, network, trips)
    expected = target.scores(log_q, target.pull(features))

    road = trips.roads[ragged.slices(trips.offsets[:-1], trips.lengths - 1)].astype(np.int64)
    goal = np.repeat(batch.destination.numpy(), batch.length.numpy())
    tokens, lengths = policy.candidates(road)
    assert np.array_equal(tokens, query.candidate_tokens) and np.array_equal(lengths, query.candidate_lengths)
    found = policy.scores(road, goal, log_q)
    for part in np.split(np.arange(len(found)), ragged.offsets(lengths)[1:-1]):
        np.testing.assert_allclose(log_softmax(found[part]), log_softmax(expected[part]), atol=2e-5)
    assert np.abs(policy.coefficients).max() > 0.1


def test_draws_are_as_frequent_as_that(policy: DestinationPolicy) -> None:
    road, goal, count = 0, int(policy.last[0]), 20_000
    tokens, lengths = policy.candidates(np.array([road]))
    log_q = np.log(np.arange(1, 1 + lengths[0]) / np.arange(1, 1 + lengths[0]).sum()).astype(np.float16)
    p = np.exp(log_softmax(policy.scores(np.array([road]), np.array([goal]), log_q)))
    roads = np.full(count, road)
    drawn = policy.draw(
        roads, np.full(count, goal), roads, np.tile(log_q, count), np.random.default_rng(0).random(count)
    )
    successors = policy.network.successors[: policy.network.successor_offsets[1]]
    observed = (drawn[:, None] == successors).sum(0)
    assert observed.sum() == count and len(tokens) == len(successors)
    common = p * count > 5
    parts = [np.append(values[common], values[~common].sum() + 1e-9) for values in (observed, p * count)]
    assert chisquare(parts[0], parts[1] * parts[0].sum() / parts[1].sum()).pvalue > 0.01


def test_destinations_are_those_of_the_labelled_trips_that_begin_nearest(policy: DestinationPolicy) -> None:
    walker = np.arange(3000)
    origin, goal = policy.begin(walker)
    points = plane(policy.network)
    seen = set()
    for road, destination in zip(origin.tolist(), goal.tolist(), strict=True):
        away = np.linalg.norm(points[policy.first] - points[road], axis=1)
        near = away <= np.sort(away)[9]
        assert destination in policy.last[near]
        seen.add((road, destination))
    assert len(seen) > 150  # of 30 roads
    one_by_one = [policy.begin(walker[[i]]) for i in range(50)]
    assert [int(goal[0]) for _, goal in one_by_one] == goal[:50].tolist()


def test_walkers_arrive_or_are_lost_where_no_way_leads_on(store: Store, policy: DestinationPolicy) -> None:
    network = policy.network
    road, goal = np.repeat(np.arange(network.num_roads), 2), np.tile(np.unique(policy.last)[:2], network.num_roads)
    is_open = graph.reachable(network, road, goal)
    expected = np.where(road == goal, End.ENDED, np.where(is_open, End.GOES_ON, End.LOST))
    assert policy.arrive(road, goal).tolist() == expected.tolist()
    assert (expected == End.GOES_ON).any()


def test_a_road_without_successors_is_no_way(store: Store, tmp_path: Path) -> None:
    """Roads 28 and 29 lead nowhere: who is there without having arrived is lost."""
    other = write_random_store(tmp_path / "store")
    offsets = other.network("successor_offsets").copy()
    offsets[29:] = offsets[28]
    np.save(other.path / "network" / "successor_offsets.npy", offsets)
    np.save(other.path / "network" / "successors.npy", other.network("successors")[: offsets[-1]])
    network = RoadNetwork.load(other)
    trips = other.trips("train")
    row = ragged.rows(trips.lengths)
    stays = np.ones(len(trips), bool)
    stays[row[:-1][(row[:-1] == row[1:]) & (trips.roads[:-1] >= 28)]] = False
    trips = trips.take(np.flatnonzero(stays))
    policy = make_policy(
        WeighingTeacher(other.tokeniser.vocabulary.size), network, other.network("length"), trips, trips,
        np.cumsum(np.ones(30)), WINDOW, 0,
    )  # fmt: skip
    goal = np.full(2, policy.last[policy.last < 28][0])
    assert policy.arrive(np.array([28, 29]), goal).tolist() == [End.LOST, End.LOST]
