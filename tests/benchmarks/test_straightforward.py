"""The straightforward batches and model against the trainer's: each proves the other, written apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips, write_random_store
from support.students import hoser_of, widths_of

from benchmarks.common import BenchmarkError
from benchmarks.straightforward import student
from benchmarks.straightforward.collate import Matrices, build_padded, check_equal, matrices_by_pair, matrices_by_trip
from benchmarks.straightforward.student import PaddedTensors, StraightforwardHOSER
from shared.store import Store
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.train.config import TrainConfig
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, prepare_step
from student_trainer.train.session import Session


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(2, 40),
    st.sampled_from([0, 1, 2, 3, 64]),
    st.sampled_from([matrices_by_pair, matrices_by_trip]),
)
def test_batches_agree(seed: int, roads: int, degree: int, longest: int, top_k: int, matrices: Matrices) -> None:
    """On random cities, down to one road that leads to itself, and trips down to one step."""
    roads = max(roads, degree)
    network, _ = random_network(num_roads=max(roads, 4), seed=seed, max_degree=min(degree, 4 + roads // 2))
    trips = random_trips(network, 12, seed=seed, longest=longest)
    index = np.random.default_rng(seed).permutation(12)[:7]
    check_equal(build_padded(network, trips, index, matrices, top_k), build_batch(network, trips, index, top_k))


@pytest.mark.parametrize("name", ["candidate_angle", "candidate_road", "distance", "label", "temporal"])
def test_batches_that_differ_are_found(name: str) -> None:
    network, _ = random_network()
    trips, index = random_trips(network, 5), np.arange(5)
    batch = build_batch(network, trips, index)
    changed = getattr(batch, name).clone()
    changed[-1] += 1
    padded = build_padded(network, trips, index, matrices_by_trip)
    with pytest.raises(BenchmarkError, match=f"{name} differs"):
        check_equal(padded, dataclasses.replace(batch, **{name: changed}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store", trips=24, seed=5)


def session_of(store: Store, out: Path, **model: Any) -> Session:
    """A session whose updates change nothing and whose gradients are not clipped, in float64."""
    settings = TrainConfig.model_validate(
        {
            "data": store.path,
            "out": out,
            "model": {"road_id_dim": 8, "road_attr_dim": 2, **model},
            "optim": {"learning_rate": 1e-30, "weight_decay": 0, "clip_norm": 1e9},
            "runtime": {"device": "cpu"},
        }
    )
    session = Session(settings, store, Runtime.of(settings.runtime, torch.device("cpu")))
    hoser_of(session.model).double()
    return session


def doubled(batch: Batch) -> Batch:
    """The batch in float64."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    floats = {name: value for name, value in fields.items() if torch.is_tensor(value) and value.is_floating_point()}
    changed: dict[str, Any] = {name: value.double() for name, value in floats.items()}
    return dataclasses.replace(batch, **changed)


@pytest.mark.parametrize("temporal", ["freqs", "time_emb"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_losses_and_gradients_agree(store: Store, tmp_path: Path, temporal: str, layers: int) -> None:
    """Of every parameter, in float64: only the logits and times pass through float32, in the trainer's model."""
    session = session_of(store, tmp_path / "run", temporal=temporal, num_graph_layers=layers)
    network, trips, index = RoadNetwork.load(store), store.trips("train"), np.arange(24)
    plain = StraightforwardHOSER(widths_of(session.settings.model), network).double()
    plain.load_state_dict(session.model.state_dict())
    batch = PaddedTensors.of(build_padded(network, trips, index, matrices_by_pair), torch.float64)
    logits, times = plain(batch)
    next_road, time = student.losses(logits, times, batch, session.scale)
    (next_road + time).backward()

    step = prepare_step(session.feed, session.model.graph, PlannedStep(0, 0, [index]))
    (ours,) = step.micro_batches
    ours = dataclasses.replace(ours, batch=doubled(ours.batch))
    session.trainer.train_step(dataclasses.replace(step, micro_batches=[ours]))
    metrics = session.trainer.take_metrics(1.0)
    assert metrics["train/loss_next_road"] == pytest.approx(next_road.item(), rel=1e-6)
    assert metrics["train/loss_time"] == pytest.approx(time.item(), rel=1e-6)
    expected = dict(plain.named_parameters())
    for name, parameter in hoser_of(session.model).named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            torch.testing.assert_close(grad, expected[name].grad, rtol=1e-4, atol=1e-7, msg=name)


def test_logits_agree(store: Store, tmp_path: Path) -> None:
    session = session_of(store, tmp_path / "run")
    network, trips, index = RoadNetwork.load(store), store.trips("val"), np.arange(8)
    plain = StraightforwardHOSER(widths_of(session.settings.model), network).double()
    plain.load_state_dict(session.model.state_dict())
    padded = PaddedTensors.of(build_padded(network, trips, index, matrices_by_pair), torch.float64)
    batch = doubled(build_batch(network, trips, index))
    with torch.no_grad():
        logits, _ = plain(padded)
        output = session.model(batch, session.model.embed_network())
    exists = torch.arange(logits.shape[2]) < padded.candidate_length[..., None]
    torch.testing.assert_close(output.logits[batch.layout.exists], logits[exists].float(), rtol=1e-5, atol=1e-6)
