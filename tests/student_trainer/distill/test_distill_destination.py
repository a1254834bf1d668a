"""The destination-aware target: its features by their definitions, its scores, its fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import chi2
from support.random_city import random_network, random_trips

from shared import ragged
from shared.store import Trips
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.data.shortest_ways import FARTHEST_M, RemainingWays, remaining_ways
from student_trainer.distill.conditional_logit import Choices, log_probs
from student_trainer.distill.destination import (
    FEATURES,
    LEAST_LOG_Q,
    DestinationTarget,
    choices_of,
    features_at_hand,
    features_of,
    teachers,
)


@pytest.fixture(scope="module")
def network() -> RoadNetwork:
    return random_network(num_roads=40, seed=3)[0]


@pytest.fixture(scope="module")
def length(network: RoadNetwork) -> np.ndarray:
    return np.random.default_rng(0).uniform(20, 300, network.num_roads)


@pytest.fixture(scope="module")
def trips(network: RoadNetwork) -> Trips:
    return random_trips(network, 60, seed=3)


@pytest.fixture(scope="module")
def batch(network: RoadNetwork, trips: Trips) -> Batch:
    return build_batch(network, trips, np.arange(len(trips)))


@pytest.fixture(scope="module")
def ways(network: RoadNetwork, length: np.ndarray, trips: Trips) -> RemainingWays:
    return remaining_ways(network, length, trips)


def shortest(network: RoadNetwork, length: np.ndarray, goal: int) -> np.ndarray:
    """Metres from entering each road to the end of `goal`, by Bellman and Ford."""
    found = np.full(network.num_roads, np.inf)
    found[goal] = length[goal]
    for _ in range(network.num_roads):
        for road in range(network.num_roads):
            following = network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]
            found[road] = min(found[road], length[road] + found[following].min(initial=np.inf))
    return found


def positions(trips: Trips) -> Iterator[tuple[int, int]]:
    """Road and destination of each position of all trips."""
    for start, end in zip(trips.offsets[:-1], trips.offsets[1:], strict=True):
        yield from ((int(road), int(trips.roads[end - 1])) for road in trips.roads[start : end - 1])


def test_features_are_those_of_the_definitions(
    network: RoadNetwork, length: np.ndarray, trips: Trips, batch: Batch, ways: RemainingWays
) -> None:
    features = features_of(batch, ways.take(batch.trips.numpy(), batch.length.numpy()))
    to_goal = {int(goal): shortest(network, length, int(goal)) for goal in batch.destination}
    expected = []
    for road, goal in positions(trips):
        candidates = network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]
        cells = network.road_token[candidates].tolist()
        metres = to_goal[goal][candidates]
        metres = np.minimum(metres, metres.min() + FARTHEST_M)
        detours = metres - metres.min()
        for cell, detour in zip(cells, detours, strict=True):
            expected.append(
                [
                    math.log(Counter(cells)[cell]),
                    detour / 1000,
                    math.log1p(detour / 50),
                    min(detour / (metres.min() + 100), 3),
                ]
            )
    np.testing.assert_allclose(features[:, [0, 3, 4, 5]], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(features[:, 1], batch.candidate_distance.numpy().astype(float))
    assert np.array_equal(features[:, 2], batch.candidate_angle.numpy().astype(float))
    assert np.exp(features[:, 0]).max() > 1.5, "some candidates share a cell"
    assert (features[:, 3] > 0).any() and (features[:, 5] == 3).any()
    assert np.array_equal(features_at_hand(batch), features[:, :3])


def test_scores_are_the_teachers_and_the_pull(batch: Batch, ways: RemainingWays) -> None:
    features = features_of(batch, ways.take(batch.trips.numpy(), batch.length.numpy()))
    coefficients = np.random.default_rng(1).normal(size=len(FEATURES))
    target = DestinationTarget(coefficients)
    log_q = np.random.default_rng(2).uniform(-30, 0, len(features)).astype(np.float16)
    log_q[0] = -np.inf
    expected = coefficients[0] * np.maximum(log_q.astype(float), LEAST_LOG_Q) + features @ coefficients[1:]
    np.testing.assert_allclose(target.scores(log_q, target.pull(features)), expected, rtol=1e-5, atol=1e-4)
    assert target.scores(log_q, target.pull(features)).dtype == np.float32
    assert teachers(log_q).min() == LEAST_LOG_Q == teachers(log_q)[0]
    assert "log_q" in str(target) and f"{coefficients[-1]:.3f}" in str(target)


def test_choices_have_the_teachers_feature_first(batch: Batch, ways: RemainingWays) -> None:
    features = features_of(batch, ways.take(batch.trips.numpy(), batch.length.numpy()))
    log_q = np.full(len(features), -1.5, np.float16)
    choices = choices_of(batch, features, log_q)
    assert (choices.features[:, 0] == -1.5).all() and np.array_equal(choices.features[:, 1:], features)
    assert np.array_equal(choices.length, batch.candidate_length.numpy())
    assert np.array_equal(choices.label, batch.label.numpy())


def test_the_fit_finds_what_made_the_choices(network: RoadNetwork, length: np.ndarray) -> None:
    trips = random_trips(network, 4_000, seed=4)
    batch = build_batch(network, trips, np.arange(len(trips)))
    ways = remaining_ways(network, length, trips)
    features = features_of(batch, ways.take(batch.trips.numpy(), batch.length.numpy()))
    rng = np.random.default_rng(5)
    log_q = rng.uniform(-6, 0, len(features)).astype(np.float16)
    truth = np.array([0.7, -0.6, -0.4, -0.5, -1.2, 0.8, -0.9])
    asked = choices_of(batch, features, log_q)
    scores = asked.features @ truth + rng.gumbel(size=len(features))
    best = np.repeat(np.maximum.reduceat(scores, asked.first), asked.length)
    label = ragged.positions(asked.length)[scores == best]
    target, fit = DestinationTarget.fitted(Choices(asked.features, asked.length, label))
    assert fit.positions == (asked.length > 1).sum() > 10_000
    off = target.coefficients - truth
    assert off @ information(asked, truth) @ off < chi2.ppf(0.999, len(FEATURES)), "as near as the sample allows"
    nothing = truth @ information(asked, truth) @ truth
    assert nothing > 1_000, "which is near"


def information(choices: Choices, coefficients: np.ndarray) -> np.ndarray:
    """Fisher's, of a conditional logit: the inverse of the covariance of what is fitted."""
    p = np.exp(log_probs(choices.features, choices.length, coefficients))[:, None]
    mean = np.add.reduceat(p * choices.features, choices.first, axis=0)
    around = choices.features - mean[ragged.rows(choices.length)]
    return (p * around).T @ around
