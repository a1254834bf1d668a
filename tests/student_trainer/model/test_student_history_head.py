"""The destination-free head: what it computes, what it teaches, and what it never touches."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from support.random_city import random_network, random_trips

from shared import ragged
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.packing import Packed, Shape
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.loss import Answer, Comparison, Distillation
from student_trainer.model.config import ModelConfig
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.hoser import HOSER
from student_trainer.model.student import StudentOutput
from student_trainer.train.objective import forward

NETWORK, _ = random_network()
TRIPS = random_trips(NETWORK, 40)
CONFIG = ModelConfig(road_id_dim=8, road_attr_dim=2)
LARGER = Shape(trips=24, steps=16, positions=320, candidates=1600, columns=9)


def batch_of(*index: int) -> Batch:
    return build_batch(NETWORK, TRIPS, np.array(index), 0)


@pytest.fixture
def student() -> tuple[HOSER, HistoryHead]:
    """In float64, so that nothing is left of rounding."""
    torch.manual_seed(1)
    return HOSER(CONFIG, NETWORK).double(), HistoryHead(CONFIG).double()


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is float32 in any precision is float64 here."""
    narrow = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t))


def answer(student: tuple[HOSER, HistoryHead], batch: Batch) -> StudentOutput:
    wide = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    model, head = student
    return forward(model, head, wide, model.embed_network())[0]


def history_logits(student: tuple[HOSER, HistoryHead], batch: Batch) -> torch.Tensor:
    found = answer(student, batch).history_logits
    assert found is not None
    return found


def masses(batch: Batch) -> torch.Tensor:
    """Log-probabilities of candidates, float64 [K], zeros beyond those that exist."""
    lengths = batch.candidate_length.numpy()
    lengths = lengths[lengths > 0]
    mass = np.random.default_rng(3).random(lengths.sum())
    log_q = np.zeros(len(batch.candidate_road))
    log_q[: len(mass)] = np.log(mass / np.repeat(np.add.reduceat(mass, ragged.offsets(lengths)[:-1]), lengths))
    return torch.from_numpy(log_q)


def test_logits_are_those_of_the_formula(student: tuple[HOSER, HistoryHead]) -> None:
    """v . tanh(W_q state + b + W_k road), candidate by candidate."""
    model, head = student
    batch = batch_of(0, 3, 8)
    output, roads = answer(student, batch), model.embed_network().road
    w_q, b, w_k, v = head.q_proj.weight, head.q_proj.bias, head.k_proj.weight, head.v_proj.weight[0]
    found, start = output.history_logits, 0
    assert found is not None
    for position, length in enumerate(batch.candidate_length.tolist()):
        for column in range(length):
            road = roads[batch.candidate_road[start + column]]
            expected = v @ torch.tanh(w_q @ output.state[position] + b + w_k @ road)
            torch.testing.assert_close(found[position, column], expected, rtol=1e-12, atol=1e-12)
        assert bool((found[position, length:] == -torch.inf).all())
        start += length


def test_it_does_not_know_the_destination(student: tuple[HOSER, HistoryHead]) -> None:
    """Other destinations, distances and angles change the navigator's answer and not a bit of the head's."""
    batch = batch_of(0, 3, 8)
    elsewhere = batch_of(0, 3, 8)
    elsewhere.destination[:] = (elsewhere.destination + 7) % NETWORK.num_roads
    elsewhere.candidate_distance[:] += 1
    elsewhere.candidate_angle[:] *= 0.5
    before, after = answer(student, batch), answer(student, elsewhere)
    assert not torch.equal(before.logits, after.logits)
    assert before.history_logits is not None and after.history_logits is not None
    assert torch.equal(before.history_logits, after.history_logits)


def test_its_divergence_teaches_the_trunk_and_the_head_but_never_the_navigator(
    student: tuple[HOSER, HistoryHead],
) -> None:
    model, head = student
    batch = batch_of(0, 3, 5, 8, 13)
    comparison = Comparison.of(batch, answer(student, batch), Answer(masses(batch)))
    alone = Distillation(DistillConfig(weight=0, head=1, target="history"))
    alone.measure(comparison).loss.backward()
    for name, parameter in [*model.named_parameters(), *head.named_parameters()]:
        if name.startswith("navigator."):
            assert parameter.grad is None, name
        elif parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_the_navigator_learns_what_it_would_without_a_head(student: tuple[HOSER, HistoryHead]) -> None:
    """Beside the other terms, too: the same gradient of the navigator, to the bit; another one of the trunk."""
    model, _ = student
    batch = batch_of(0, 3, 5, 8, 13)
    gradients = []
    for weight in (0.0, 1.0):
        model.zero_grad()
        comparison = Comparison.of(batch, answer(student, batch), Answer(masses(batch)))
        Distillation(DistillConfig(weight=1, head=weight, target="history")).measure(comparison).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    same = {name for name, gradient in gradients[0].items() if torch.equal(gradient, gradients[1][name])}
    assert same == {name for name in gradients[0] if name.startswith("navigator.")} and same


def test_a_batch_is_answered_as_its_trips_are_one_by_one(student: tuple[HOSER, HistoryHead]) -> None:
    index = [0, 3, 5, 8, 13]
    together, start = history_logits(student, batch_of(*index)), 0
    for trip in index:
        alone = history_logits(student, batch_of(trip))
        found = together[start : start + len(alone), : alone.shape[1]]
        torch.testing.assert_close(found, alone, rtol=1e-11, atol=1e-12)
        start += len(alone)
    assert start == len(together)


def test_padding_changes_nothing(student: tuple[HOSER, HistoryHead]) -> None:
    """Neither the answer at a position that exists, nor a gradient."""
    model, head = student
    batch, results = batch_of(0, 3, 5, 8, 13), []
    for padded in (batch, Packed.of(batch, LARGER).unpack()):
        model.zero_grad(), head.zero_grad()
        output = answer(student, padded)
        log_q = torch.zeros(len(padded.candidate_road), dtype=torch.float64)
        log_q[: len(batch.candidate_road)] = masses(batch)
        comparison = Comparison.of(padded, output, Answer(log_q))
        Distillation(DistillConfig(weight=0, head=1, target="history")).measure(comparison).loss.backward()
        named = [*model.named_parameters(), *head.named_parameters()]
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        assert output.history_logits is not None
        gradients["logits"] = output.history_logits[: batch.positions, : batch.layout.exists.shape[1]].detach()
        results.append(gradients)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-11, atol=1e-13, msg=partial("{}: {}".format, name))
