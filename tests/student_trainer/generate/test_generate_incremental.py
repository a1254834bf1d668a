"""A step at a time equals the whole prefix anew, and no step depends on those that are computed with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips
from support.students import SCALE, random_model

from shared.errors import DataError
from shared.store import Trips
from student_trainer.data.batch import build_batch, is_weekend
from student_trainer.data.network import RoadNetwork
from student_trainer.model import incremental
from student_trainer.model.device import one_thread
from student_trainer.model.hoser import HOSER
from student_trainer.model.hoser_steps import HoserSteps
from student_trainer.model.incremental import IncrementalStudent

Steps = list[tuple[np.ndarray, np.ndarray]]
"""Of each step: log-probabilities of its candidates, and seconds to the next road of the trip."""


def walk(student: IncrementalStudent, trips: Trips, index: np.ndarray) -> dict[int, Steps]:
    """Follows trips side by side, those of other lengths too; what the student says at every step of each."""
    table = student.table()
    found: dict[int, Steps] = {int(trip): [] for trip in index}
    place = np.full(len(index), -1)
    first, last = trips.offsets[index], trips.offsets[index + 1] - 1
    weekend = is_weekend(trips.times[first])
    for step in range(int((last - first).max())):
        on = np.flatnonzero(first + step < last)
        at = first[on] + step
        new = table.take(len(on))
        table.parent[new], table.road[new], table.time[new] = place[on], trips.roads[at], trips.times[at]
        place[on] = new
        length = np.full(len(on), step + 1)
        candidates, log_prob = student.advance(table, new, length, weekend[on], trips.roads[last[on]].astype(np.int64))
        seconds = student.seconds(table, new, trips.roads[at + 1].astype(np.int64))
        parts = np.split(log_prob, np.cumsum(candidates.length)[:-1])
        for row, trip in enumerate(index[on]):
            found[int(trip)].append((parts[row], seconds[row]))
    return found


@pytest.mark.parametrize("temporal", ["freqs", "time_emb"])
@pytest.mark.parametrize("top_k", [0, 2])
def test_a_step_at_a_time_equals_the_whole_path(temporal: str, top_k: int) -> None:
    network, _ = random_network(40, seed=3)
    trips = random_trips(network, 50, seed=3, longest=40)
    model = random_model(network, temporal=temporal, num_layers=3)
    index = np.arange(50)
    batch = build_batch(network, trips, index, top_k)
    with torch.no_grad():
        output = model(batch, model.embed_network())
        times = model.label_times(batch, model.embed_network(), output).double().numpy()
    expected = [row[exists] for row, exists in zip(output.logits.double(), batch.layout.exists, strict=True)]
    labelled = batch.label.numpy() >= 0
    seconds = np.expm1(times * SCALE.sigma + SCALE.mu).clip(min=0)

    found = walk(IncrementalStudent(model, network, SCALE, top_k), trips, index)
    ours = [step for trip in index for step in found[int(trip)]]
    assert len(ours) == len(expected) == batch.positions
    for (log_prob, _), logits in zip(ours, expected, strict=True):
        np.testing.assert_allclose(log_prob, logits.log_softmax(0).numpy(), rtol=0, atol=1e-5)
    rounded = np.array([second for _, second in ours])
    assert np.abs(rounded - seconds)[labelled].max() <= 0.5 + 1e-3
    assert max(np.ptp(log_prob) for log_prob, _ in ours) > 1  # else anything would agree


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 299))
def test_a_step_has_the_same_bits_whatever_it_is_computed_with(seed: int, companions: int) -> None:
    _, trips, student = CITY
    rng = np.random.default_rng(seed)
    alone = int(rng.integers(len(trips)))
    others = rng.permutation(np.setdiff1d(np.arange(len(trips)), alone))[:companions]
    with one_thread():
        expected = walk(student, trips, np.array([alone]))[alone]
        together = walk(student, trips, rng.permutation(np.append(others, alone)))[alone]
    for (log_prob, second), (theirs, their_second) in zip(expected, together, strict=True):
        assert log_prob.tobytes() == theirs.tobytes()
        assert second == their_second


def city() -> tuple[RoadNetwork, Trips, IncrementalStudent]:
    network, _ = random_network(40, seed=5)
    student = IncrementalStudent(random_model(network, road_id_dim=64, road_attr_dim=16), network, SCALE, 0)
    return network, random_trips(network, 300, seed=5), student


CITY = city()
"""With HOSER's own widths, whose products are what matters."""


class OddTiles(IncrementalStudent):
    """A student on a machine where 48 rows and fewer than 32 are summed in another order."""

    def _products(self, x: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        found = super()._products(x, z)
        if len(x) == 48 or len(x) < 32:
            found[-1] = torch.nextafter(found[-1], torch.tensor(torch.inf))
        return found


def test_sizes_of_tile_that_give_other_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = random_network()
    student = OddTiles(random_model(network), network, SCALE, 0)
    usual = IncrementalStudent(random_model(network), network, SCALE, 0).tiles
    assert student.tiles == tuple(size for size in usual if size >= 32 and size != 48)
    assert student.tiles[-1] == incremental.TILE


def test_weights_that_are_not_finite_are_refused() -> None:
    network, _ = random_network()
    trips, model = random_trips(network, 3), random_model(network)
    with torch.no_grad():
        model.navigator.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        walk(IncrementalStudent(model, network, SCALE, 0), trips, np.arange(3))


@pytest.mark.parametrize("pred", [1e6, -1e6])
def test_absurd_times_stay_whole_and_not_negative(pred: float) -> None:
    network, _ = random_network()
    trips, model = random_trips(network, 3), random_model(network)
    with torch.no_grad():
        model.navigator.time_estimator_linear_3.bias.fill_(pred)
    for steps in walk(IncrementalStudent(model, network, SCALE, 0), trips, np.arange(3)).values():
        for _, second in steps:
            assert 0 <= second < 2**31


def test_a_table_grows_and_reuses_what_no_path_needs() -> None:
    network, _ = random_network()
    model: HOSER = random_model(network)
    table = HoserSteps(model.config.num_layers, 8, 4, capacity=4)
    first = table.take(3)
    table.parent[first] = [-1, first[0], first[0]]
    table.road[first], table.keys[0][first] = [7, 8, 9], 1
    more = table.take(3)
    assert table.capacity == 8 and table.used == 6
    assert len({*first, *more}) == 6
    assert table.road[first].tolist() == [7, 8, 9] and (table.keys[0][first] == 1).all()
    table.keep(first[[1]], np.array([-1]))
    assert table.used == 2
    assert not {*table.take(6)} & {*first[:2]}
    table.release(first[:2])
    assert {*table.take(2)} == {*first[:2]}
