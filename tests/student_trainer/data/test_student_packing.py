"""A batch in one array is the batch, and what pads it changes nothing."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.packing import ALIGNMENT, Packed, Shape, to_device
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.loss import Answer
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.train.feed import most_candidates
from student_trainer.train.objective import Divisors, Objective

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


def results(batch: Batch, answer: np.ndarray, positions: int, collisions: str) -> dict[str, torch.Tensor]:
    """Loss, metrics and gradients of a model in float64."""
    torch.manual_seed(1)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2), NETWORK).double()
    batch = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    network = model.embed_network()
    output = model(batch, network)
    times = model.label_times(batch, network, output)
    padded = torch.zeros(len(batch.candidate_token), dtype=torch.float64)
    padded[: len(answer)] = torch.from_numpy(answer)
    config = DistillConfig.model_validate({"collisions": collisions, "temperature": 2.0, "weight": 0.5})
    objective = Objective(config, 1.0, TimeScale(3.5, 0.8))
    outcome = objective.of(batch, output, times, Answer(padded), Divisors(positions, positions, positions))
    assert outcome.loss.dtype == torch.float64
    outcome.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": outcome.loss.detach(), **outcome.sums, **gradients}


@pytest.mark.parametrize("way", ["rounded", "larger"])
@pytest.mark.parametrize("collisions", ["marginal", "duplicate"])
def test_padding_changes_no_loss_and_no_gradient(way: str, collisions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, to rounding; positions without a label included."""
    narrow = torch.Tensor.float  # what is float32 in any precision is float64 here
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t))
    batch = batch_of([0, 3, 5, 8, 13, 21, 34], top_k=2)
    assert bool((batch.label < 0).any())
    lengths = batch.candidate_length.numpy()
    mass = np.random.default_rng(5).random(len(batch.candidate_road))
    answer = np.log(mass / np.repeat(np.add.reduceat(mass, ragged.offsets(lengths)[:-1]), lengths))
    shape = Shape.shared([Shape.of(batch)], MOST) if way == "rounded" else LARGER
    expected = results(batch, answer, batch.positions, collisions)
    found = results(Packed.of(batch, shape).unpack(), answer, batch.positions, collisions)
    assert found.keys() == expected.keys() and len(expected) > 40
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14, msg=partial("{}: {}".format, name))
