"""The distillation term against float64 computations by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.definitions import kl as kl_by_definition

from student_trainer.distill import kl as distillation
from student_trainer.distill.config import Collisions
from student_trainer.distill.kl import TeacherTarget
from student_trainer.distill.loss import masked_log_softmax
from student_trainer.train import loss as losses


def padded(rows: list[list[float]], fill: float) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.float32)


def target_of(log_probs: list[list[float]], tokens: list[list[int]]) -> TeacherTarget:
    token = padded([[float(t) for t in row] for row in tokens], -1).long()
    return TeacherTarget.of(padded(log_probs, -math.inf), token, token >= 0)


positions = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-8, 8, width=32), min_size=n, max_size=n),
        st.lists(st.floats(-12, 0, width=16), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)


def normalise_within_cells(log_q: list[float], tokens: list[int]) -> list[float]:
    """Candidates of one cell carry the same log-probability, as the teacher answers."""
    return [log_q[tokens.index(token)] for token in tokens]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(positions, min_size=1, max_size=5),
    st.floats(1, 5, width=32),
    st.sampled_from(["marginal", "duplicate"]),
)
def test_kl_matches_its_definition(
    rows: list[tuple[list[float], list[float], list[int]]], temperature: float, collisions: Collisions
) -> None:
    log_q = [normalise_within_cells(q, tokens) for _, q, tokens in rows]
    target = target_of(log_q, [tokens for _, _, tokens in rows])
    logits = padded([row[0] for row in rows], -math.inf)
    kl = distillation.forward_kl(logits, target, temperature, collisions)
    expected = [
        kl_by_definition(row[0], q, row[2], temperature, collisions) for row, q in zip(rows, log_q, strict=True)
    ]
    assert kl.dtype == torch.float32
    np.testing.assert_allclose(kl.numpy(), expected, rtol=2e-5, atol=2e-6)


@settings(deadline=None)
@given(positions, st.floats(1, 5, width=32))
def test_marginal_equals_duplicate_without_collisions(
    row: tuple[list[float], list[float], list[int]], temperature: float
) -> None:
    logits, log_q, _ = row
    target = target_of([log_q], [list(range(len(logits)))])
    marginal, duplicate = (
        distillation.forward_kl(torch.tensor([logits]), target, temperature, kind) for kind in ("marginal", "duplicate")
    )
    torch.testing.assert_close(marginal, duplicate, rtol=1e-5, atol=1e-6)


def test_corrected_worked_example() -> None:
    """A step by hand: KL 0.358 and CE 0.916."""
    masses = np.array([0.0032, 0.1547, 0.0018, 0.0003])
    log_q = np.log(masses / masses.sum()).tolist()
    logits = torch.tensor([[2.1, 1.8, -0.5, -1.2]])
    target = target_of([log_q], [[12458, 12459, 15203, 8964]])
    kl = distillation.forward_kl(logits, target, 2.0, "marginal")
    assert kl.item() == pytest.approx(0.358, abs=5e-4)
    assert losses.next_road_loss(logits, torch.tensor([1])).item() == pytest.approx(0.916, abs=5e-4)


def test_shared_cell_pulls_towards_uniform_only_in_duplicate_mode() -> None:
    """A student sure of one of two candidates in a cell agrees with a teacher that cannot tell them apart."""
    target = target_of([[math.log(0.5)] * 2], [[7, 7]])
    logits = torch.tensor([[6.0, 0.0]])
    assert distillation.forward_kl(logits, target, 1.0, "marginal").item() == pytest.approx(0, abs=1e-6)
    assert distillation.forward_kl(logits, target, 1.0, "duplicate").item() > 1


@settings(deadline=None)
@given(st.lists(positions, min_size=1, max_size=4), st.sampled_from(["marginal", "duplicate"]))
def test_kl_gradient_matches_finite_differences(
    rows: list[tuple[list[float], list[float], list[int]]], collisions: Collisions
) -> None:
    log_q = [normalise_within_cells(q, tokens) for _, q, tokens in rows]
    target = target_of(log_q, [tokens for _, _, tokens in rows])
    logits = padded([row[0] for row in rows], -math.inf).requires_grad_()
    distillation.forward_kl(logits, target, 1.7, collisions).sum().backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    step = 1e-4
    for i, (values, _, tokens) in enumerate(rows):
        for k in range(len(values)):
            up, down = ([v + sign * step * (j == k) for j, v in enumerate(values)] for sign in (1, -1))
            slope = (
                kl_by_definition(up, log_q[i], tokens, 1.7, collisions)
                - kl_by_definition(down, log_q[i], tokens, 1.7, collisions)
            ) / (2 * step)
            assert logits.grad[i, k].item() == pytest.approx(slope, abs=2e-4)


def test_zero_teacher_mass_is_no_nan() -> None:
    target = target_of([[0.0, -math.inf]], [[1, 2]])
    logits = torch.tensor([[0.0, 3.0]], requires_grad=True)
    kl = distillation.forward_kl(logits, target, 2.0, "marginal").sum()
    kl.backward()
    assert kl.item() == pytest.approx(kl_by_definition([0, 3], [0, -math.inf], [1, 2], 2.0, "marginal"), abs=1e-6)
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_teacher_diagnostics() -> None:
    """Three candidates, the first two in one cell that the teacher prefers; the label is the second."""
    target = target_of([[math.log(0.8), math.log(0.8), math.log(0.2)]], [[4, 4, 9]])
    result = distillation.teacher_diagnostics(torch.tensor([[2.0, 0.0, 1.0]]), target, torch.tensor([1]))
    assert result.teacher_accuracy.item() == pytest.approx(0.5)  # guesses one of two
    assert result.agreement.item() == 1
    assert result.collides.item() == 1
    assert result.colliding_mass.item() == pytest.approx(0.8, abs=1e-6)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert result.teacher_entropy.item() == pytest.approx(entropy, abs=1e-6)
    cut_off = distillation.teacher_diagnostics(torch.tensor([[2.0, 0.0, 1.0]]), target, torch.tensor([-100]))
    assert cut_off.teacher_accuracy.item() == 0


@settings(deadline=None)
@given(st.lists(positions, min_size=1, max_size=4), st.floats(1, 5, width=32), st.floats(-50, 50, width=16))
def test_candidates_that_are_known_one_by_one_are_compared_one_by_one(
    rows: list[tuple[list[float], list[float], list[int]]], temperature: float, shift: float
) -> None:
    """Of scores that are log-probabilities but for a constant, whatever cells candidates share; none collides."""
    scores = padded([[value + shift for value in row[1]] for row in rows], -math.inf)
    logits, exists = padded([row[0] for row in rows], -math.inf), scores > -math.inf
    aware = masked_log_softmax(scores, exists)
    log_q = [np.log(np.exp(row[1]) / np.exp(row[1]).sum()).tolist() for row in rows]
    expected = [
        kl_by_definition(row[0], q, list(range(len(q))), temperature, "duplicate")
        for row, q in zip(rows, log_q, strict=True)
    ]
    found = distillation.kl_over(aware, logits, exists, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-5)
    assert aware.exp().sum(-1).tolist() == pytest.approx([1.0] * len(rows), abs=1e-5)
    assert bool((aware[~exists] == -math.inf).all())


def test_a_position_without_candidates_gives_no_nan() -> None:
    """One without any candidate, beside a real one: no NaN goes back to what is in front of it."""
    scores = torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]])
    exists = scores > -math.inf
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    kl = distillation.kl_over(masked_log_softmax(scores, exists), logits, exists, 1.0)
    torch.where(torch.tensor([True, False]), kl, 0).sum().backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all()) and logits.grad[1].tolist() == [0, 0]
