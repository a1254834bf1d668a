"""The schedule ends where it says; precision picks what the device can do."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FileFormatError
from shared.training.states import random_state, restore_optimizer, restore_scaler, set_random_state
from student_trainer.distill.config import DistillConfig
from student_trainer.train.config import OptimConfig, RuntimeConfig
from student_trainer.train.optim import (
    Precision,
    build_optimizer,
    distill_share,
    learning_rate,
)


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


@given(st.integers(1, 400), st.floats(0.01, 1), st.sampled_from(["cosine", "linear"]))
def test_the_share_of_the_weight_falls_from_one_to_nothing(total: int, share: float, schedule: str) -> None:
    """At the first step it is whole; from the given share of the run on it is gone."""
    config = DistillConfig.model_validate({"schedule": schedule, "schedule_share": share})
    shares = [distill_share(step, total, config) for step in range(total)]
    assert shares[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(shares))
    for step, found in enumerate(shares):
        if step >= share * total:
            assert found == 0.0
        else:
            done = step / (share * total)
            expected = 1 - done if schedule == "linear" else math.cos(math.pi / 2 * done) ** 2
            assert found == pytest.approx(expected, abs=1e-12) and found > 0


def test_a_constant_weight_is_constant() -> None:
    config = DistillConfig(schedule="constant", schedule_share=0.1)
    assert {distill_share(step, 10, config) for step in range(10)} == {1.0}


def test_precision_on_cpu() -> None:
    cpu = torch.device("cpu")
    assert Precision(RuntimeConfig(), cpu).dtype is None
    bfloat16 = Precision(RuntimeConfig(amp="bfloat16"), cpu)
    with bfloat16.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert Precision(RuntimeConfig(amp="float16"), cpu).scaler.is_enabled()


def trained() -> torch.optim.Optimizer:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(OptimConfig(), model)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimizer_goes_on_where_it_was() -> None:
    state = copy.deepcopy(trained().state_dict())
    fresh = build_optimizer(OptimConfig(), torch.nn.Linear(3, 2))
    restore_optimizer(fresh, state)
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    restore_optimizer(fresh, build_optimizer(OptimConfig(), torch.nn.Linear(3, 2)).state_dict())  # of step 0


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


def scaler_of(amp: str) -> torch.amp.GradScaler:
    return Precision(RuntimeConfig.model_validate({"amp": amp}), torch.device("cpu")).scaler


def test_a_loss_scaler_goes_on_where_it_was() -> None:
    trained = scaler_of("float16")
    trained.load_state_dict({**trained.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    fresh = scaler_of("float16")
    restore_scaler(fresh, copy.deepcopy(trained.state_dict()))
    assert fresh.state_dict() == trained.state_dict()
    assert (fresh.get_scale(), fresh.state_dict()["_growth_tracker"]) == (512.0, 7)


@pytest.mark.parametrize(("before", "now"), [("off", "float16"), ("bfloat16", "float16"), ("float16", "off")])
def test_arithmetic_may_change_when_a_run_goes_on(before: str, now: str) -> None:
    """What scales begins with a fresh scale where there was none, and what does not needs none."""
    scaler = scaler_of(now)
    restore_scaler(scaler, scaler_of(before).state_dict())
    assert scaler.state_dict() == scaler_of(now).state_dict()


@pytest.mark.parametrize("spoil", [{"scale": "high"}, {"scale": torch.ones(1)}, {"more": 1.0}])
def test_a_spoiled_state_of_the_scaler_is_refused(spoil: dict[str, Any]) -> None:
    scaler = scaler_of("float16")
    with pytest.raises(FileFormatError, match="state of the loss scaler is damaged"):
        restore_scaler(scaler, {**scaler.state_dict(), **spoil})
    with pytest.raises(FileFormatError, match=r"it has \['scale'\], expected \['_growth_tracker'"):
        restore_scaler(scaler, {"scale": 2.0})


@pytest.mark.parametrize(
    "states", [{}, {"cuda": torch.zeros(16, dtype=torch.uint8)}, {"cpu": torch.zeros(4, dtype=torch.uint8)},
               {"cpu": torch.zeros(5056)}],
)  # fmt: skip
def test_a_spoiled_state_of_the_generators_is_refused(states: dict[str, torch.Tensor]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(FileFormatError, match="state of the random generators is damaged"):
        set_random_state(states, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_go_on_on_another_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device's state is set on one only, and one that has none saved draws on from the run's seed."""
    cuda, of_cuda = torch.device("cuda", 1), torch.zeros(16, dtype=torch.uint8)
    placed: list[tuple[torch.Tensor, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: of_cuda)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: placed.append((state, device)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        saved = {"cuda": random_state(cuda), "cpu": random_state(torch.device("cpu"))}
        assert saved["cuda"].keys() == {"cpu", "cuda"} and saved["cpu"].keys() == {"cpu"}
        expected = torch.rand(3)
        set_random_state(saved["cuda"], torch.device("cpu"))
        assert torch.equal(torch.rand(3), expected) and not placed
        set_random_state(saved["cpu"], cuda)
        assert torch.equal(torch.rand(3), expected) and not placed
        set_random_state(saved["cuda"], cuda)
        assert placed == [(of_cuda, cuda)]
