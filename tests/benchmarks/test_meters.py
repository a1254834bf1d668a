"""What sections make of a daemon's metrics, a run's log and samples of memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from benchmarks import hidden, memory, meters, step
from benchmarks.memory import Sample
from benchmarks.step import EncoderClock

BEFORE = """
# TYPE teacher_positions_total counter
teacher_positions_total{outcome="hit"} 10.0
teacher_positions_total{outcome="miss"} 10.0
# TYPE teacher_batch_positions histogram
teacher_batch_positions_bucket{le="+Inf"} 2.0
teacher_batch_positions_sum 20.0
teacher_batch_positions_count 2.0
"""
AFTER = BEFORE.replace('"hit"} 10', '"hit"} 70').replace('"miss"} 10', '"miss"} 30').replace("_sum 20", "_sum 120")
AFTER = AFTER.replace("_count 2", "_count 4") + 'teacher_positions_total{outcome="wait"} 20.0\n'


def test_rates_are_of_what_was_counted_between_two_scrapes() -> None:
    before, after = meters.parse(BEFORE), meters.parse(AFTER)
    assert meters.growth(before, after, "teacher_positions_total") == 100
    assert meters.hit_rate(before, after) == 0.8
    assert meters.mean_of(before, after, "teacher_batch_positions") == 50


def test_what_a_server_does_not_count_is_unknown() -> None:
    found = meters.parse("# TYPE other gauge\nother 1.0\n")
    assert meters.total(found, "teacher_cache_bytes") is None
    assert meters.hit_rate({}, found) is None
    assert meters.mean_of({}, found, "teacher_batch_positions") is None


def test_processor_time_and_memory_of_this_process() -> None:
    process = psutil.Process(os.getpid())
    assert meters.tree_cpu(process) > 0
    assert meters.tree_rss(process) > 2**20


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    with meters.pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_an_epoch_is_the_steps_between_validations() -> None:
    records = [
        {"step": 2, "perf/step_ms": 500.0, "perf/teacher_wait_ms": 100.0},
        {"step": 3, "perf/step_ms": 1000.0},
        {"step": 3, "val/accuracy": 0.5},
        {"step": 6, "perf/step_ms": 100.0},
        {"step": 6, "val/accuracy": 0.6},
    ]
    first, second = hidden.epochs(records)
    assert (first.seconds, first.waited) == pytest.approx((2.0, 0.2))
    assert (second.seconds, second.waited) == pytest.approx((0.3, 0.0))


def test_growth_is_judged_on_the_second_half() -> None:
    def sample(minute: float, rss: float, cached: float | None) -> Sample:
        return Sample(60 * minute, rss, 1.0, cached, None if cached is None else 1024.0, None)

    found = memory.judge([sample(0, 100, None), sample(1, 160, 1.0), sample(2, 170, 1.0), sample(3, 172, 1.0)])
    assert (found["start_mib"], found["end_mib"], found["most_mib"]) == (100, 172, 172)
    assert found["slope_mib_per_minute"] == pytest.approx(2.0)
    assert found["bytes_per_position"] == 1024
    assert memory.judge([sample(0, 1, None), sample(1, 1, None), sample(2, 1, None)])["bytes_per_position"] is None


def test_the_peak_is_of_what_this_process_held() -> None:
    """A block of 64 MiB that is gone again is seen, one from before the reset is not."""
    np.ones(2**25).sum()
    before = meters.reset_peak_rss()
    assert meters.peak_rss() - before < 2**24
    np.ones(2**23).sum()
    assert meters.peak_rss() - before > 2**25
    assert psutil.Process().memory_info().rss - before < 2**25


def test_the_clock_counts_the_module_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in its forward, in its backward, and behind it on the way forward and back."""
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def passing_backward(seconds: float) -> Callable[[torch.Tensor], None]:
        return lambda gradient: pass_time(seconds)

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.bias = nn.Parameter(torch.ones(2))

        def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
            pass_time(1)
            inner = 2 * self.weight
            inner.register_hook(passing_backward(2))
            return 2 * inner, 3 * self.bias

    monkeypatch.setattr(step.time, "perf_counter", lambda: now)
    module = Slow()
    clock = EncoderClock(module)
    weight, bias = module()
    pass_time(10)
    outer = 2 * weight
    outer.register_hook(passing_backward(20))
    (outer.sum() + bias.sum()).backward()
    assert clock.take() == (1, 2)
    assert clock.take() == (0, 0)
