"""How much a batch may hold and when it may be cut, told by times alone."""

from __future__ import annotations

import pytest

from teacher_server.batching.config import BatchingConfig
from teacher_server.batching.pacing import ACTIVE_SECONDS, FIRST_BUDGET, MAX_AHEAD, SMALLEST_BUDGET, Pacing

SETTINGS = BatchingConfig(batch_ms=200.0, slice_ms=10.0, max_batch_tokens=32768)


def make_pacing(tokens_a_second: int = 0, **changes: float) -> Pacing:
    pacing = Pacing(SETTINGS.model_copy(update=changes))
    if tokens_a_second:
        pacing.computed(tokens_a_second, 1.0)
    return pacing


def test_speed_is_that_of_the_last_batches() -> None:
    pacing = make_pacing()
    assert pacing.tokens_in(100.0) == FIRST_BUDGET
    pacing.computed(1000, 1.0)
    assert pacing.tokens_in(2.0) == 2000
    pacing.computed(3000, 1.0)
    assert pacing.tokens_in(1.9) == pytest.approx(0.9 * 1000 + 3000)
    for _ in range(200):
        pacing.computed(500, 1.0)
    assert pacing.tokens_in(1.0) == pytest.approx(500)


def test_a_lone_caller_gets_batches_and_several_get_slices() -> None:
    pacing = make_pacing(tokens_a_second=100_000)
    pacing.saw("a", 10.0)
    assert pacing.budget(["a"], 10.0) == 20_000
    pacing.saw("b", 10.5)
    assert pacing.budget(["b"], 10.5) == 1000


@pytest.mark.parametrize(
    ("seen", "waiting", "now", "expected"),
    [
        ([], [], 0.0, False),
        ([("a", 5.0)], ["a"], 5.0, False),
        ([("a", 5.0), ("a", 5.5)], ["a"], 5.5, False),
        ([("a", 5.0), ("b", 5.5)], ["b"], 5.9, True),
        ([("a", 5.0), ("b", 5.5)], ["b"], 5.0 + ACTIVE_SECONDS, False),
        ([("a", 5.0), ("b", 9.0)], ["b"], 9.0, False),
        ([("a", 5.0), ("b", 9.0)], ["a", "b"], 99.0, True),
        ([("a", 5.0), ("b", 9.0)], ["a"], 9.5, True),
        ([("a", 5.0), ("b", 9.0)], ["a"], 9.0 + ACTIVE_SECONDS, False),
        ([("a", 5.0), ("b", 5.5), ("b", 5.9)], ["b"], 5.95, True),
    ],
)
def test_shared_while_others_wait_or_asked_a_moment_ago(
    seen: list[tuple[str, float]], waiting: list[str], now: float, expected: bool
) -> None:
    pacing = make_pacing()
    for caller, time in seen:
        pacing.saw(caller, time)
    assert pacing.is_shared(waiting, now) is expected


@pytest.mark.parametrize(
    ("speed", "largest", "expected"),
    [
        (0, 32768, FIRST_BUDGET),
        (10, 32768, SMALLEST_BUDGET),
        (10, 20, 20),
        (10**9, 32768, 32768),
        (50_000, 32768, 10_000),
    ],
)
def test_budgets_are_bounded(speed: int, largest: int, expected: int) -> None:
    assert make_pacing(speed, max_batch_tokens=largest).budget(["a"], 0.0) == expected


def test_an_idle_model_gets_whatever_waits() -> None:
    pacing = make_pacing(100_000)
    pacing.saw("a", 0.0)
    pacing.saw("b", 0.0)
    assert pacing.may_cut(0, 1, ["a", "b"], 0.0)


@pytest.mark.parametrize(
    ("ahead", "queued", "callers", "expected"),
    [
        (1, 20_000, ["a"], True),
        (1, 19_999, ["a"], False),  # it may still grow
        (1, 20_000, ["a", "b"], False),  # b would wait for it
        (MAX_AHEAD, 10**6, ["a"], False),
    ],
)
def test_a_batch_is_cut_ahead_if_it_cannot_grow_and_nobody_waits_for_it(
    ahead: int, queued: int, callers: list[str], expected: bool
) -> None:
    assert make_pacing(100_000).may_cut(ahead, queued, callers, 5.0) is expected


@pytest.mark.parametrize(("queued", "expected"), [(20, True), (19, False)])
def test_small_batches_are_cut_ahead_when_they_are_full(queued: int, expected: bool) -> None:
    assert make_pacing(10, max_batch_tokens=20).may_cut(1, queued, ["a"], 5.0) is expected


@pytest.mark.parametrize(("queued", "expected"), [(1000, True), (999, False)])
def test_an_accelerator_s_slices_are_cut_ahead_when_they_are_full(queued: int, expected: bool) -> None:
    """At most one, so that a caller who comes now waits for two slices and not for more."""
    pacing = Pacing(SETTINGS, is_accelerated=True)
    pacing.computed(100_000, 1.0)
    assert pacing.may_cut(1, queued, ["a", "b"], 5.0) is expected
    assert not pacing.may_cut(MAX_AHEAD, 10**6, ["a", "b"], 5.0)
