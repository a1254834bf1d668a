"""Batches that are cut from a backlog, without a loop and without a model."""

from __future__ import annotations

import numpy as np
from support.row_fakes import answers, make_query

from shared.wire import HistoryMode
from teacher_server.answers.table import AnswerTable
from teacher_server.batching.backlog import Backlog, Cut, Queued
from teacher_server.batching.config import BatchingConfig
from teacher_server.batching.pacing import FIRST_BUDGET, Pacing

COSTS = np.arange(20, dtype=np.int64)


class Bench:
    """A table, a pacing that knows no speed, and a backlog."""

    def __init__(self, max_batch_tokens: int = FIRST_BUDGET) -> None:
        self.table = AnswerTable(0, COSTS, sot=99)
        self.pacing = Pacing(BatchingConfig(max_batch_tokens=max_batch_tokens))
        self.backlog: Backlog[Queued] = Backlog(self.table, self.pacing, max_batch_tokens)
        self.gone: set[Queued] = set()

    def push(self, *tokens: int, caller: str = "a", deadline: float | None = None) -> Queued:
        """A request of a row of two padded tokens for each token."""
        query = make_query(HistoryMode.WINDOW, [[token] for token in tokens], [[1, 2]] * len(tokens))
        pending = self.table.ask(query)
        request = Queued(pending, caller, deadline, pending.cost)
        self.backlog.push(request)
        return request

    def cut(self, now: float = 0.0, is_draining: bool = False) -> Cut:
        return self.backlog.cut(now, is_draining, self._drop)

    def _drop(self, request: Queued, now: float) -> bool:
        if request not in self.gone:
            return False
        self.backlog.discard(request)
        self.table.release(request.pending)
        return True


def test_everything_that_waits_is_one_batch() -> None:
    bench = Bench()
    bench.push(1, 2)
    bench.push(3, caller="b")
    assert bench.backlog.tokens == 6
    cut = bench.cut()
    assert (len(cut.slots), cut.tokens, cut.requests, cut.reason) == (3, 6, 2, "idle")
    assert (bench.backlog.tokens, len(bench.backlog)) == (0, 0)


def test_a_large_request_is_cut_into_several_batches() -> None:
    bench = Bench(max_batch_tokens=6)
    request = bench.push(*range(7))
    cuts = [bench.cut() for _ in range(3)]
    assert [(cut.tokens, cut.reason) for cut in cuts] == [(6, "full"), (6, "full"), (2, "idle")]
    assert (bench.backlog.tokens, len(bench.backlog)) == (0, 0)
    for cut in cuts:
        bench.table.fill(cut.slots, answers(bench.table.batch(cut.slots)))
    assert bench.table.collect(request.pending) and request.pending.is_answered


def test_the_least_served_caller_is_next() -> None:
    bench = Bench(max_batch_tokens=6)
    early = bench.push(*range(9))
    bench.cut()
    late = bench.push(20, caller="b")
    assert bench.cut().requests == 2
    assert (early.pending.taken, late.pending.taken) == (5, 1)


def test_requests_that_are_gone_drop_out() -> None:
    bench = Bench()
    bench.gone.add(bench.push(1, 2))
    cut = bench.cut()
    assert (len(cut.slots), cut.requests) == (0, 0)
    assert bench.backlog.tokens == 0 and bench.table.rows == 0


def test_a_deadline_keeps_a_batch_short() -> None:
    bench = Bench()
    bench.pacing.computed(100, 1.0)  # 100 tokens a second
    bench.push(1, deadline=0.04)
    bench.push(2, 3, 4)
    cut = bench.cut()
    assert (cut.tokens, cut.reason) == (4, "deadline")


def test_the_last_batches_say_that_the_teacher_stops() -> None:
    bench = Bench()
    bench.push(1)
    assert bench.cut(is_draining=True).reason == "drain"


def test_rows_that_others_queued_are_charged_to_who_takes_them() -> None:
    bench = Bench()
    first, second = bench.push(1, 2), bench.push(2, 1, caller="b")
    assert (first.tokens, second.tokens, bench.backlog.tokens) == (4, 0, 4)
    bench.backlog.discard(first)
    bench.backlog.discard(first)  # idempotent
    assert bench.backlog.tokens == 0
    assert bench.cut().tokens == 4
    assert bench.backlog.tokens == 0
