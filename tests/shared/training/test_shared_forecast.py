"""Pace and forecast of a job, by a clock that the tests set."""

from __future__ import annotations

import pytest
from support.clock import Clock

from shared.training import forecast
from shared.training.forecast import Forecast


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(job: Forecast, clock: Clock, seconds: float, amount: float, times: int = 1) -> None:
    for _ in range(times):
        clock.now += seconds
        job.add(amount)


def test_the_first_portions_and_pauses_do_not_count(clock: Clock) -> None:
    job = Forecast(clock)
    assert job.pace == 0 and job.seconds_for(5) is None
    work(job, clock, 100, 1, forecast.WARM_UP_PORTIONS)
    assert job.pace == 0
    work(job, clock, 2, 30)
    clock.now += 1000
    job.begin()
    work(job, clock, 1, 30)
    assert job.pace == 20 and job.seconds_for(60) == 3 and (job.portions, job.seconds) == (2, 3)


def test_what_was_measured_is_enough_after_some_portions_or_some_time(clock: Clock) -> None:
    fast, slow = Forecast(clock), Forecast(clock)
    work(fast, clock, 0.1, 1, forecast.WARM_UP_PORTIONS + forecast.FEW_PORTIONS - 1)
    assert not fast.is_worth_saying
    work(fast, clock, 0.1, 1)
    assert fast.is_worth_saying
    slow.begin()
    work(slow, clock, 50, 1, forecast.WARM_UP_PORTIONS)
    assert not slow.is_worth_saying
    work(slow, clock, 50, 1)
    assert slow.is_worth_saying


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert forecast.spoken(seconds) == said
