"""The supervised losses against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.definitions import cross_entropy

from student_trainer.model.time_scale import TimeScale
from student_trainer.train import loss as losses


def test_next_road_loss_ignores_cut_labels() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, -math.inf]])
    both = losses.next_road_loss(logits, torch.tensor([1, 0]))
    one = losses.next_road_loss(logits, torch.tensor([1, -100]))
    assert one.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert both.item() == pytest.approx(one.item(), abs=1e-6)  # a lone candidate costs nothing


def test_time_errors_stay_in_log_space() -> None:
    scale = TimeScale(mu=2.0, sigma=0.5)
    seconds = torch.tensor([0.5, 19.0])
    error = losses.time_errors(torch.tensor([1.0, -1.0]), seconds, scale)
    expected = [abs(2.5 - math.log1p(0.5)) / 1, abs(1.5 - math.log1p(19.0)) / math.log1p(19.0)]
    np.testing.assert_allclose(error.numpy(), expected, rtol=1e-6)
    absolute = losses.seconds_errors(torch.tensor([1.0, -1.0]), seconds, scale)
    np.testing.assert_allclose(absolute.numpy(), [math.expm1(2.5) - 0.5, 19 - math.expm1(1.5)], rtol=1e-5)


ROWS = st.lists(
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=5).flatmap(
        lambda logits: st.tuples(st.just(logits), st.integers(-1, len(logits) - 1))
    ),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.floats(0, 0.95))
def test_smoothing_spreads_a_share_of_each_label_over_its_candidates(
    rows: list[tuple[list[float], int]], smoothing: float
) -> None:
    """Over a position's own, not over what pads it; what has no label adds nothing, nor has a gradient."""
    width = max(len(logits) for logits, _ in rows)
    logits = torch.tensor([row + [-math.inf] * (width - len(row)) for row, _ in rows], requires_grad=True)
    label = torch.tensor([label if label >= 0 else -100 for _, label in rows])
    found = losses.next_road_loss(logits, label, smoothing)
    expected = sum(cross_entropy(row, label, smoothing) for row, label in rows if label >= 0)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found.backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    assert not logits.grad[label < 0].any()


def test_without_smoothing_not_a_bit_changes() -> None:
    logits, label = (
        torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, -100, 0, 0, 1]),
    )
    plain = torch.nn.functional.cross_entropy(logits, label, reduction="sum")
    assert torch.equal(losses.next_road_loss(logits, label, 0.0), plain)
