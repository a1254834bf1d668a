"""Whose turn it is: the least served caller's oldest item."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_server.batching.fair_queue import FORGET_ABOVE, FairQueue


def serve(queue: FairQueue[int], amount: float) -> tuple[str, int]:
    caller, item = queue.first()
    queue.charge(caller, amount)
    queue.discard(caller, item)
    return caller, item


def test_callers_take_turns_and_each_ones_items_keep_their_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for item in range(3):
        queue.push("a", item)
    for item in range(3, 6):
        queue.push("b", item)
    assert [serve(queue, 1) for _ in range(6)] == [("a", 0), ("b", 3), ("a", 1), ("b", 4), ("a", 2), ("b", 5)]
    assert not queue


def test_who_was_served_more_waits_longer() -> None:
    queue: FairQueue[int] = FairQueue()
    for item in range(4):
        queue.push("heavy", item)
        queue.push("light", item)
    served = [serve(queue, 10 if turn == 0 else 2)[0] for turn in range(5)]
    assert served == ["heavy", "light", "light", "light", "light"]


def test_shares_are_kept_to() -> None:
    queue: FairQueue[int] = FairQueue({"large": 3.0, "small": 1.0, "half": 0.5}.__getitem__)
    for item in range(100):
        for caller in ("large", "small", "half"):
            queue.push(caller, item)
    served = [serve(queue, 7)[0] for _ in range(90)]
    counts = {caller: served.count(caller) for caller in ("large", "small", "half")}
    assert counts == {"large": 60, "small": 20, "half": 10}


def test_a_caller_that_returns_is_not_paid_for_the_time_it_did_not_wait() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("late", 0)
    serve(queue, 1)
    for item in range(200):
        queue.push("busy", item)
    for _ in range(100):
        serve(queue, 1)
    for item in range(50):
        queue.push("late", item)
    served = [serve(queue, 1)[0] for _ in range(20)]
    assert 9 <= served.count("late") <= 11


def test_accounts_of_those_who_left_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for caller in range(5 * FORGET_ABOVE):
        queue.push(str(caller), 0)
        serve(queue, 1)
        queue.push("steady", 0)
        serve(queue, 1)
    assert len(queue._served) <= FORGET_ABOVE + 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=60))
def test_while_all_wait_nobody_is_ahead_by_more_than_one_item(items: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting = dict.fromkeys("abc", 0)
    for number, (caller, _) in enumerate(items):
        queue.push(caller, number)
        waiting[caller] += 1
    served = dict.fromkeys("abc", 0)
    while queue and all(waiting[caller] for caller, _ in items):
        caller, number = queue.first()
        amount = items[number][1]
        queue.charge(caller, amount)
        queue.discard(caller, number)
        served[caller] += amount
        waiting[caller] -= 1
        amounts = [served[name] for name in {caller for caller, _ in items}]
        assert max(amounts) - min(amounts) <= 5
