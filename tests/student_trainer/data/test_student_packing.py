"""A batch in one array is the batch, and what pads it changes nothing."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips
from support.recipes import EVERYTHING, HISTORY

from shared import ragged
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.packing import ALIGNMENT, Packed, Shape, to_device
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.loss import Answer
from student_trainer.model.config import ModelConfig
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.train.feed import most_candidates
from student_trainer.train.objective import Divisors, Objective, forward

NETWORK, _ = random_network()
TRIPS = random_trips(NETWORK, 40)
MOST = most_candidates(NETWORK, 0)
BATCHES = st.lists(st.integers(0, 39), min_size=1, max_size=20)
LARGER = Shape(trips=24, steps=16, positions=320, candidates=1600, columns=MOST + 2)


def batch_of(index: list[int], top_k: int = 0) -> Batch:
    return build_batch(NETWORK, TRIPS, np.array(index), top_k)


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    own = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "layout"}
    return own | {f"layout.{name}": tensor for name, tensor in vars(batch.layout).items()}


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.integers(0, 3))
def test_what_is_unpacked_is_what_was_packed(index: list[int], top_k: int) -> None:
    batch = batch_of(index, top_k)
    packed = Packed.of(batch)
    assert packed.array.dtype == torch.int32 and len(packed.array) == packed.shape.numbers
    assert all(place.start % ALIGNMENT == 0 for place in packed.shape.places().values())
    found, expected = tensors_of(packed.unpack()), tensors_of(batch)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.sampled_from(["rounded", "larger"]))
def test_padding_surrounds_what_was_packed(index: list[int], way: str) -> None:
    batch = batch_of(index)
    own = Shape.of(batch)
    shape = Shape.shared([own], MOST) if way == "rounded" else LARGER
    padded = Packed.of(batch, shape).unpack()
    assert Shape.of(padded) == shape
    found = tensors_of(padded)
    for name, tensor in tensors_of(batch).items():
        inner = found[name][tuple(map(slice, tensor.shape))]
        if name == "padded_step":
            inner = inner // shape.steps * own.steps + inner % shape.steps
        assert torch.equal(inner, tensor), name
    assert padded.is_real.sum() == batch.positions and bool(batch.is_real.all())
    assert bool(padded.layout.exists.any(1).all())  # no position without a candidate: its softmax would be no number
    cells = padded.layout.position * shape.columns + padded.layout.column
    assert len(cells[: own.candidates].unique()) == own.candidates  # none that counts shares its place
    assert int(padded.layout.position[own.candidates :].min()) >= own.positions


def test_shapes_are_few_and_a_batch_fits_into_its_own() -> None:
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(60):
        own = Shape.of(batch_of(rng.integers(0, 40, rng.integers(14, 18)).tolist()))
        shapes.add(Shape.shared([own], MOST))
        assert Shape.shared([own], MOST).holds(own)
    assert len(shapes) <= 12


def test_micro_batches_fit_into_one_shape() -> None:
    batches = [batch_of([0]), batch_of([1, 2, 3, 4, 5]), batch_of([7] * 9)]
    shape = Shape.shared([Shape.of(batch) for batch in batches], MOST)
    assert [Packed.of(batch, shape).unpack().is_real.sum() for batch in batches] == [b.positions for b in batches]


def test_no_shape_is_too_small_or_lacks_a_candidate() -> None:
    batch = batch_of([1, 2, 3])
    own = Shape.of(batch)
    for change in ({"trips": own.trips - 1}, {"positions": own.positions + 1}, {"candidates": own.candidates + 1}):
        with pytest.raises(ValueError, match="cannot be padded"):
            Packed.of(batch, dataclasses.replace(own, **change))


def test_the_host_needs_no_array() -> None:
    batch = batch_of([1])
    assert to_device(batch, torch.device("cpu")) is batch
    moved = to_device(batch, torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}


def results(
    batch: Batch, answers: list[np.ndarray], positions: int, changed: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Loss, metrics and gradients of a model and its head in float64, of trips that are sampled ones from number 10 on.

    Args:
        batch: as it is, or padded.
        answers: the teacher's log-probs of the candidates, and the target's scores.
        positions: those that count.
        changed: settings of distillation.
    """
    torch.manual_seed(1)
    config = ModelConfig(road_id_dim=8, road_attr_dim=2)
    model, head = HOSER(config, NETWORK).double(), HistoryHead(config).double()
    batch = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    distill = DistillConfig.model_validate({"temperature": 2.0, "weight": 0.5, **changed})
    output, times = forward(model, head if distill.head else None, batch, model.embed_network())
    padded = torch.zeros(2, len(batch.candidate_token), dtype=torch.float64)
    padded[:, : len(answers[0])] = torch.from_numpy(np.stack(answers))
    answer = Answer(*padded) if distill.target == "destination" else Answer(padded[0])
    objective = Objective(distill, 1.0, TimeScale(3.5, 0.8), smoothing=0.1, first_sampled=10)
    outcome = objective.of(batch, output, times, answer, Divisors(positions, positions, positions, 0.5))
    assert outcome.loss.dtype == torch.float64
    outcome.loss.backward()
    named = [*model.named_parameters(), *head.named_parameters()]
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return {"loss": outcome.loss.detach(), **outcome.sums, **gradients}


@pytest.mark.parametrize("way", ["rounded", "larger"])
@pytest.mark.parametrize(
    "changed",
    [
        {**HISTORY, "collisions": "marginal"},
        {**HISTORY, "collisions": "duplicate"},
        {},
        {"collisions": "duplicate", "head": 0.5},
        EVERYTHING,
    ],
    ids=["history", "history, duplicate", "default", "duplicate", "sampled"],
)
def test_padding_changes_no_loss_and_no_gradient(
    way: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, to rounding; positions without a label included."""
    narrow = torch.Tensor.float  # what is float32 in any precision is float64 here
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t))
    batch = batch_of([0, 3, 5, 8, 13, 21, 34], top_k=2)
    assert bool((batch.label < 0).any())
    lengths, random = batch.candidate_length.numpy(), np.random.default_rng(5)
    mass = random.random(len(batch.candidate_road))
    answer = np.log(mass / np.repeat(np.add.reduceat(mass, ragged.offsets(lengths)[:-1]), lengths))
    answers = [answer, random.normal(0, 3, len(answer))]
    shape = Shape.shared([Shape.of(batch)], MOST) if way == "rounded" else LARGER
    expected = results(batch, answers, batch.positions, changed)
    found = results(Packed.of(batch, shape).unpack(), answers, batch.positions, changed)
    assert found.keys() == expected.keys() and len(expected) > 40
    assert ("q_proj.weight" in found) == ("loss_head_kl" in found) == (changed.get("head") != 0)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14, msg=partial("{}: {}".format, name))
