"""The supervised losses against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

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
