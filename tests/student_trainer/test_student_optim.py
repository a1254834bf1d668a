"""The schedule ends where it says; precision picks what the device can do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, FileFormatError
from student_trainer.train.config import OptimConfig, RuntimeConfig
from student_trainer.train.optim import Precision, build_optimizer, learning_rate, pick_device, restore_optimizer


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


def trained() -> torch.optim.Optimizer:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimizer_goes_on_where_it_was() -> None:
    state = copy.deepcopy(trained().state_dict())
    fresh = build_optimizer(torch.nn.Linear(3, 2), OptimConfig())
    restore_optimizer(fresh, state)
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    restore_optimizer(fresh, build_optimizer(torch.nn.Linear(3, 2), OptimConfig()).state_dict())  # of step 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("state"),
        lambda state: state.pop("param_groups"),
        lambda state: state["param_groups"].append({}),
        lambda state: state["param_groups"][0].update(lr="fast"),
        lambda state: state["param_groups"][0].update(params=[0, 7]),
        lambda state: state["state"].update({9: state["state"][0]}),
        lambda state: state["state"][0].pop("step"),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(5)),
        lambda state: state["state"][1].update(exp_avg_sq=3),
    ],
)
def test_a_spoiled_state_of_the_optimizer_is_refused(spoil: Callable[[dict[str, Any]], object]) -> None:
    state = copy.deepcopy(trained().state_dict())
    spoil(state)
    with pytest.raises(FileFormatError, match="state of the optimizer is damaged"):
        restore_optimizer(trained(), state)
