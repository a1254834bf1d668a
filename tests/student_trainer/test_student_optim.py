"""The schedule ends where it says; precision picks what the device can do."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from student_trainer.train.config import OptimConfig, RuntimeConfig
from student_trainer.train.optim import Precision, learning_rate, pick_device


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_schedule_rises_then_falls_to_its_end(total: int, warmup: float, final: float) -> None:
    config = OptimConfig(learning_rate=2.0, warmup=warmup, final_lr=final)
    rates = [learning_rate(step, total, config) for step in range(total)]
    rising = round(warmup * total)
    assert all(a < b for a, b in itertools.pairwise(rates[:rising]))
    assert all(a >= b for a, b in itertools.pairwise(rates[rising:]))
    assert max(rates) <= 2.0 + 1e-12
    if rising:
        assert rates[rising - 1] == pytest.approx(2.0)
    if rising < total:
        assert rates[-1] == pytest.approx(2.0 * final, abs=1e-9)


def test_precision_on_cpu() -> None:
    cpu = torch.device("cpu")
    assert Precision(RuntimeConfig(), cpu).dtype is None
    bfloat16 = Precision(RuntimeConfig(amp="bfloat16"), cpu)
    with bfloat16.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert Precision(RuntimeConfig(amp="float16"), cpu).scaler.is_enabled()


def test_unknown_device() -> None:
    with pytest.raises(ConfigError, match="no device"):
        pick_device("abacus")
    with pytest.raises(ConfigError, match="not here"):
        pick_device("cuda:77")
