"""The batcher: what is merged, split and shared, whose turn it is, who is refused, and that all are answered once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.clock import Clock
from support.row_fakes import make_query
from support.teacher_fakes import FakeScorer, expected_log_probs

from shared.errors import DeadlineExceeded, InternalError, Overloaded, Unavailable
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.answers.compiled import PINNED
from teacher_server.answers.table import AnswerTable
from teacher_server.batching.batcher import Answer, Batcher
from teacher_server.batching.config import BatchingConfig
from teacher_server.metrics import Metrics
from teacher_server.scorer import Batch, ScorerLost

LONGEST_COST = 64


def work(*tags: int, cost: int = 1) -> ScoreQuery:
    """A request of one row a tag, each of so many padded tokens; a row's answer is -tag / 64."""
    return make_query(HistoryMode.WINDOW, [[0] * (cost - 1)] * len(tags), [[tag] for tag in tags])


class Bench:
    """A batcher around a fake scorer."""

    def __init__(self, thread: ThreadPoolExecutor, limits: BatchingConfig, cache_bytes: int, **device: Any) -> None:
        self.scorer = FakeScorer(LONGEST_COST)
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.rows = AnswerTable(cache_bytes, self.scorer.costs, sot=99)
        metrics = Metrics(self.registry)
        metrics.watch(self.rows)
        self.batcher: Batcher[Batch] = Batcher(self.scorer, self.rows, thread, limits, metrics, self.clock, **device)

    async def submit(self, *queries: ScoreQuery, caller: str = "a", **values: Any) -> list[asyncio.Task[Answer]]:
        """Submits requests, in order, and lets each be admitted."""
        tasks = [asyncio.create_task(self.batcher.submit(query, caller, **values)) for query in queries]
        await asyncio.sleep(0)
        return tasks

    async def until_computing(self, batches: int) -> None:
        """Waits until the model has been given so many batches."""
        while len(self.scorer.batches) < batches:
            await asyncio.sleep(0.001)

    def count(self, name: str, **labels: str) -> float:
        """A sample of the metrics."""
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def tags(self) -> list[list[int]]:
        """What the model was given, batch by batch."""
        return [batch.candidates.tolist() for batch in self.scorer.batches]


@contextlib.asynccontextmanager
async def bench(
    tokens: int = 100,
    positions: int = 100,
    candidates: int = 10**6,
    cache_bytes: int = 0,
    is_accelerated: bool = False,
    on_lost: Callable[[], None] | None = None,
    **limits: float,
) -> AsyncIterator[Bench]:
    settings = BatchingConfig(
        max_batch_tokens=tokens,
        max_queued_positions=positions,
        max_request_positions=positions,
        max_queued_candidates=candidates,
        max_request_candidates=candidates,
        **limits,
    )
    with ThreadPoolExecutor(1, "model") as thread:
        made = Bench(thread, settings, cache_bytes, is_accelerated=is_accelerated, on_lost=on_lost)
        try:
            yield made
        finally:
            made.scorer.open()
            await made.batcher.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def tags_of(tasks: list[asyncio.Task[Answer]]) -> list[list[float]]:
    return [(-64 * (await task).log_probs).tolist() for task in tasks]


def test_lone_request_is_computed_at_once() -> None:
    async def test() -> None:
        async with bench() as b:
            answer = await b.batcher.submit(work(7), "a")
            assert answer.log_probs.tolist() == [-7 / 64]
            assert answer.candidate_mass is None
            assert b.count("teacher_batches_total", reason="idle") == 1

    run(test())


def test_what_comes_while_the_model_computes_is_merged() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(1), work(2), work(3))
            b.scorer.open()
            assert await tags_of(tasks) == [[1], [2], [3]]
            assert b.tags == [[1], [2, 3]]
            assert b.count("teacher_batch_requests_sum") == 3
            assert b.count("teacher_scored_positions_total") == 3

    run(test())


def test_budget_is_in_padded_tokens_oldest_first() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, cost=6), work(2, cost=5), work(3, cost=4), work(4, cost=2))
            b.scorer.open()
            assert await tags_of(tasks) == [[0], [1], [2], [3], [4]]
            assert b.tags == [[0], [1], [2, 3], [4]]  # 4 does not overtake 2, though it fits beside 1
            assert b.count("teacher_batches_total", reason="full") == 2

    run(test())


def test_a_row_above_the_budget_goes_alone() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, cost=2), work(2, cost=50), work(3, cost=2))
            b.scorer.open()
            assert await tags_of(tasks) == [[0], [1], [2], [3]]
            assert b.tags == [[0], [1], [2], [3]]

    run(test())


def test_a_large_request_is_split_and_answered_whole() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            (task,) = await b.submit(work(*range(1, 26), cost=1))
            assert await tags_of([task]) == [list(range(1, 26))]
            assert b.tags == [list(range(1, 11)), list(range(11, 21)), list(range(21, 26))]

    run(test())


def test_full_batch_is_assembled_while_the_model_computes_a_partial_one_is_not() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, cost=5))
            await b.until_computing(1)
            assert len(b.scorer.assembled) == 1
            tasks += await b.submit(work(2, cost=5), work(3, cost=5))
            while len(b.scorer.assembled) < 2:  # 1 and 2 are made ready; 3 may still be joined
                await asyncio.sleep(0.001)
            assert b.scorer.assembled[1].startswith("assembler")
            tasks += await b.submit(work(4, cost=5))
            assert b.count("teacher_batches_total", reason="idle") == 1
            b.scorer.open()
            assert await tags_of(tasks) == [[0], [1], [2], [3], [4]]
            assert b.tags == [[0], [1, 2], [3, 4]]

    run(test())


def test_a_row_that_is_in_flight_is_waited_for_not_computed_again() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(1, 2), caller="a")
            await b.until_computing(1)
            tasks += await b.submit(work(2), work(2, 3), caller="b")
            b.scorer.open()
            assert await tags_of(tasks) == [[1, 2], [2], [2, 3]]
            assert b.tags == [[1, 2], [3]]
            assert b.count("teacher_positions_total", outcome="wait") == 2
            assert b.count("teacher_positions_total", outcome="miss") == 3

    run(test())


def test_equal_requests_queued_together_are_computed_once() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0))
            for caller in "abc":
                tasks += await b.submit(work(1, 2), caller=caller)
            b.scorer.open()
            assert await tags_of(tasks) == [[0], [1, 2], [1, 2], [1, 2]]
            assert b.tags == [[0], [1, 2]]

    run(test())


def test_a_remembered_answer_needs_no_model_and_no_room() -> None:
    async def test() -> None:
        async with bench(positions=2, cache_bytes=10**6) as b:
            first = await b.batcher.submit(work(1, 2), "a")
            b.scorer.hold()
            busy = await b.submit(work(3, 4))
            again = await b.batcher.submit(work(1, 2), "b")
            assert np.array_equal(first.log_probs, again.log_probs)
            assert again.queue_seconds == again.compute_seconds == 0
            assert b.count("teacher_positions_total", outcome="hit") == 2
            assert b.count("teacher_cache_rows") == 4
            b.scorer.open()
            await asyncio.gather(*busy)
            assert b.tags == [[1, 2], [3, 4]]

    run(test())


def test_a_light_caller_is_served_before_the_rest_of_a_heavy_one() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            heavy = await b.submit(work(*range(1, 51)), caller="heavy")
            light = await b.submit(work(90, 91), caller="light")
            b.scorer.open()
            assert await tags_of(light) == [[90, 91]]
            assert not heavy[0].done()
            assert await tags_of(heavy) == [list(range(1, 51))]
            assert 90 in b.tags[1] or 90 in b.tags[2]  # the first was cut before, the second perhaps assembled

    run(test())


def test_shared_batches_are_slices_of_time_and_lone_ones_long() -> None:
    async def test() -> None:
        async with bench(tokens=10_000, positions=10_000, batch_ms=10_000, slice_ms=1000) as b:
            b.scorer.hold()
            tasks = await b.submit(work(*range(1000)))  # the speed is not known yet: 1,024 tokens
            await b.until_computing(1)
            b.clock.now += 5.0  # 200 tokens a second
            b.scorer.release()
            await asyncio.gather(*tasks)
            tasks = await b.submit(work(*range(3000)))
            await b.until_computing(2)
            assert len(b.tags[1]) == 2000  # ten seconds' worth
            b.clock.now += 10.0
            await b.submit(work(9000), caller="b")
            b.scorer.release()
            await b.until_computing(3)
            assert len(b.tags[2]) == 200  # one second's worth, with the newcomer's row in it
            assert 9000 in b.tags[2]

    run(test())


def test_a_slice_is_kept_for_a_caller_that_is_only_thinking() -> None:
    """The heavy caller asked long ago and still waits; the light one was just answered and will ask again."""

    async def test() -> None:
        async with bench(tokens=10_000, positions=10_000, batch_ms=10_000, slice_ms=1000) as b:
            b.scorer.hold()
            tasks = await b.submit(work(*range(1000)), caller="heavy")
            await b.until_computing(1)
            tasks += await b.submit(work(*range(1000, 1900)), caller="heavy")
            b.clock.now += 5.0  # 200 tokens a second
            light = await b.submit(work(9000), caller="light")
            b.scorer.release()
            await b.until_computing(2)
            b.clock.now += 0.9
            b.scorer.release()
            await asyncio.gather(*light)
            await b.until_computing(3)
            assert 9000 in b.tags[1]
            assert all(len(tags) < 210 for tags in b.tags[1:3])
            b.clock.now += 5.0  # the light one has not come back
            b.scorer.release()
            await b.until_computing(4)
            assert len(b.tags[3]) > 400
            b.scorer.open()
            await asyncio.gather(*tasks)

    run(test())


def test_a_batch_is_kept_short_for_a_deadline() -> None:
    async def test() -> None:
        async with bench(tokens=10_000, positions=10_000, batch_ms=100_000, slice_ms=100_000) as b:
            b.scorer.hold()
            tasks = await b.submit(work(*range(1000)))
            await b.until_computing(1)
            urgent = await b.submit(work(1000), deadline=6.0)
            tasks += await b.submit(work(*range(2000, 3000)))
            b.clock.now = 5.0  # 200 tokens a second, and one second left
            b.scorer.release()
            await b.until_computing(2)
            assert len(b.tags[1]) == 200 and b.tags[1][0] == 1000
            assert b.count("teacher_batches_total", reason="deadline") == 1
            b.scorer.open()
            await asyncio.gather(*tasks, *urgent)

    run(test())


def test_full_queue_refuses_at_once_and_recovers() -> None:
    async def test() -> None:
        async with bench(positions=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(*range(6)), work(*range(6, 10)))
            with pytest.raises(Overloaded, match="10 positions wait, 1 more would exceed 10"):
                await b.batcher.submit(work(50), "a")
            assert b.count("teacher_rejected_total", reason="queue_full") == 1
            assert b.count("teacher_queue_positions") == 10
            tasks += await b.submit(work(60), granted=True)  # whom room was promised has it
            b.scorer.open()
            assert await tags_of(tasks) == [list(range(6)), list(range(6, 10)), [60]]
            assert await tags_of(await b.submit(work(50))) == [[50]]
            assert b.count("teacher_queue_positions") == b.count("teacher_queue_requests") == 0
            assert b.rows.rows == 0

    run(test())


def test_candidates_fill_the_queue_too() -> None:
    """Whoever was granted positions was promised no more than a usual number of candidates."""

    async def test() -> None:
        async with bench(candidates=10) as b:
            b.scorer.hold()
            tasks = await b.submit(make_query(HistoryMode.WINDOW, [[]], [list(range(8))]))
            for granted in (False, True):
                with pytest.raises(Overloaded, match="8 candidates wait, 3 more would exceed 10"):
                    await b.batcher.submit(make_query(HistoryMode.WINDOW, [[]], [[8, 9, 10]]), "a", granted=granted)
            b.scorer.open()
            assert await tags_of(tasks) == [list(range(8))]
            assert await tags_of(await b.submit(make_query(HistoryMode.WINDOW, [[]], [list(range(10))]))) == [
                list(range(10))
            ]
            assert b.rows.rows == 0

    run(test())


def test_requests_without_candidates_are_answered_at_once() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            for query in (work(), make_query(HistoryMode.WINDOW, [[1], [2]], [[], []], include_candidate_mass=True)):
                answer = await b.batcher.submit(query, "a")
                assert answer.log_probs.tolist() == []
            assert answer.candidate_mass is not None and answer.candidate_mass.tolist() == [0, 0]

    run(test())


def test_expired_request_is_dropped_before_compute() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            first = await b.submit(work(0))
            late = await b.submit(work(1), deadline=5.0)
            in_time = await b.submit(work(2), deadline=50.0)
            b.clock.now = 6.0
            b.scorer.open()
            with pytest.raises(DeadlineExceeded):
                await late[0]
            assert await tags_of(first + in_time) == [[0], [2]]
            assert b.tags == [[0], [2]]
            assert b.count("teacher_expired_total") == 1

    run(test())


def test_cancelled_request_leaves_the_queue_at_once() -> None:
    async def test() -> None:
        async with bench(positions=3) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, 10))
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            assert b.count("teacher_queue_positions") == 1
            tasks[1:] = await b.submit(work(2, 20))
            b.scorer.open()
            assert await tags_of(tasks) == [[0], [2, 20]]
            assert b.tags == [[0], [2, 20]]
            assert b.count("teacher_cancelled_total") == 1

    run(test())


def test_what_another_caller_wants_too_survives_a_cancelled_request() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0))
            leaving = await b.submit(work(1, 2), caller="a")
            staying = await b.submit(work(2, 3), caller="b")
            leaving[0].cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            b.scorer.open()
            assert await tags_of(tasks + staying) == [[0], [2, 3]]
            assert sorted(b.tags[1]) == [2, 3]

    run(test())


def test_caller_that_leaves_as_its_batch_is_cut_is_not_computed() -> None:
    async def test() -> None:
        async with bench(tokens=5) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1))
            tasks[1].cancel()  # its task has not run yet when the next line cuts a full batch
            b.scorer.open()
            assert (await b.batcher.submit(work(2, cost=5), "a")).log_probs.tolist() == [-2 / 64]
            await asyncio.gather(tasks[1], return_exceptions=True)
            assert await tags_of(tasks[:1]) == [[0]]
            assert b.tags == [[0], [2]]
            assert b.count("teacher_cancelled_total") == 1

    run(test())


def test_caller_that_leaves_during_compute_spoils_nothing() -> None:
    async def test() -> None:
        async with bench(cache_bytes=10**6) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1), work(2))
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            b.scorer.open()
            assert await tags_of(tasks[1:]) == [[1], [2]]
            assert b.count("teacher_cancelled_total") == 1
            assert await tags_of(await b.submit(work(0))) == [[0]]  # what was computed for it is remembered
            assert b.tags == [[0], [1, 2]]

    run(test())


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), InternalError("not finite")])
def test_failing_model_answers_all_who_wait_and_the_next_batch_runs(failure: Exception) -> None:
    async def test() -> None:
        async with bench(cache_bytes=10**6) as b:
            b.scorer.hold()
            b.scorer.failure = failure
            tasks = await b.submit(work(0), work(1), work(2))
            tasks += await b.submit(work(0), caller="b")  # shares the row, and its fate
            b.scorer.release(2)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [InternalError] * 4
            assert len({id(outcome) for outcome in outcomes}) == 4
            b.scorer.failure = None
            b.scorer.open()
            assert await tags_of(await b.submit(work(0, 3))) == [[0, 3]]
            assert b.count("teacher_cache_rows") == 2

    run(test())


def test_close_answers_the_accepted_and_refuses_the_new() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1), work(2))
            closing = asyncio.create_task(b.batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                await b.batcher.submit(work(3), "a")
            assert not closing.done()
            assert b.batcher.unanswered == 3
            b.scorer.open()
            await closing
            assert await tags_of(tasks) == [[0], [1], [2]]
            assert b.count("teacher_batches_total", reason="drain") == 1
            assert b.count("teacher_rejected_total", reason="draining") == 1

    run(test())


def test_waiting_and_computing_are_told_apart() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1))
            await b.until_computing(1)
            b.clock.now = 3.0
            b.scorer.release()
            first = await tasks[0]
            assert (first.queue_seconds, first.compute_seconds) == (0.0, 3.0)
            await b.until_computing(2)
            b.clock.now = 5.0
            b.scorer.release()
            second = await tasks[1]
            assert second.queue_seconds + second.compute_seconds == 5.0
            assert b.count("teacher_queue_wait_seconds_count") == 2
            assert b.count("teacher_compute_seconds_count") == 2

    run(test())


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), max_size=8),  # tags
        st.integers(1, 12),  # cost of each row
        st.sampled_from("abc"),  # caller
        st.integers(0, 3),  # turns of the loop before it
        st.booleans(),  # cancelled
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.sampled_from([0, 700, 10**6]))
def test_every_request_is_answered_once_with_its_own_answer(
    requests: list[tuple[list[int], int, str, int, bool]], cache_bytes: int
) -> None:
    async def test() -> None:
        async with bench(tokens=20, positions=40, cache_bytes=cache_bytes) as b:
            tasks: list[asyncio.Task[Answer]] = []
            for tags, cost, caller, turns, _ in requests:
                for _ in range(turns):
                    await asyncio.sleep(0)
                tasks.append(asyncio.create_task(b.batcher.submit(work(*tags, cost=cost), caller)))
            for task, (*_, cancelled) in zip(tasks, requests, strict=True):
                if cancelled:
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)

            for (tags, cost, *_), outcome in zip(requests, outcomes, strict=True):
                if isinstance(outcome, Answer):
                    assert np.array_equal(outcome.log_probs, expected_log_probs(work(*tags, cost=cost)))
                else:
                    assert isinstance(outcome, Overloaded | asyncio.CancelledError)
            await b.batcher.close()
            while b.rows._table.counters[PINNED]:  # what those who left have wanted is computed to its end
                await asyncio.sleep(0.001)
            for batch in b.scorer.batches:
                assert len(batch.lengths) == 1 or batch.lengths.sum() <= 20
                assert len({(length, tag) for length, tag in zip(batch.lengths, batch.candidates, strict=True)}) == len(
                    batch.lengths
                )
            if cache_bytes == 10**6:  # all that was computed is remembered: nothing twice
                rows = [pair for x in b.scorer.batches for pair in zip(x.lengths, x.candidates, strict=True)]
                assert len(rows) == len(set(rows)) == b.rows.rows
            assert b.rows.bytes <= cache_bytes
            assert b.count("teacher_queue_positions") == b.count("teacher_queue_requests") == 0

    run(test())


def test_a_lost_scorer_is_told_of_once_and_everybody_may_ask_another_teacher() -> None:
    async def test() -> None:
        told: list[str] = []
        async with bench(on_lost=lambda: told.append("lost"), tokens=2) as b:
            b.scorer.hold()
            b.scorer.failure = ScorerLost("cuda:0 is lost: CUDA error: an illegal memory access was encountered")
            tasks = await b.submit(work(1), work(2), work(3), work(4), work(5))
            b.scorer.open()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
            assert len({id(outcome) for outcome in outcomes}) == 5
            assert len(b.scorer.batches) > 1 and told == ["lost"]
            b.scorer.failure = None
            with pytest.raises(Unavailable, match="cuda:0 is lost: CUDA error: an illegal memory access"):
                await b.batcher.submit(work(6), "a")
            assert [6] not in b.tags

    run(test())


def test_an_accelerator_has_the_next_slice_cut_while_it_computes_for_several() -> None:
    """Its budget is full, so nobody's batch could have grown; a CPU's batch is cut when it is free."""

    async def test() -> None:
        for is_accelerated in (False, True):
            async with bench(is_accelerated=is_accelerated, tokens=2) as b:
                b.scorer.hold()
                tasks = await b.submit(work(1), caller="a") + await b.submit(work(2), work(3), caller="b")
                tasks += await b.submit(work(4), work(5), caller="c")
                await b.until_computing(1)
                await asyncio.sleep(0.05)
                assembled = len(b.scorer.assembled)
                b.scorer.open()
                assert [answer for (answer,) in await tags_of(tasks)] == [1, 2, 3, 4, 5]
                assert assembled == (2 if is_accelerated else 1)
                assert [len(tags) for tags in b.tags] == [1, 2, 2]

    run(test())


@pytest.mark.parametrize(("tokens", "is_accelerated", "expected"), [(0, False, 32768), (0, True, 131072), (7, True, 7)])
def test_tokens_of_a_batch_follow_the_device(tokens: int, is_accelerated: bool, expected: int) -> None:
    assert BatchingConfig(max_batch_tokens=tokens).chosen(is_accelerated).max_batch_tokens == expected
