"""The batcher: what is merged, in which order, who is refused, and that everybody is answered once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.teacher_fakes import FakeScorer, FakeWork, work

from shared.errors import DeadlineExceeded, InternalError, Overloaded, Unavailable
from teacher_server.batcher import Answer, Batcher
from teacher_server.config import BatchingConfig
from teacher_server.metrics import Metrics


class Clock:
    """Time that the test tells."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A batcher around a fake scorer."""

    def __init__(self, thread: ThreadPoolExecutor, limits: BatchingConfig) -> None:
        self.scorer = FakeScorer()
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.batcher: Batcher[FakeWork] = Batcher(self.scorer.score, thread, limits, Metrics(self.registry), self.clock)

    async def submit(self, *works: FakeWork, deadline: float | None = None) -> list[asyncio.Task[Answer]]:
        """Submits works, in order, and lets each be admitted."""
        tasks = [asyncio.create_task(self.batcher.submit(work, deadline)) for work in works]
        await asyncio.sleep(0)
        return tasks

    def count(self, name: str, **labels: str) -> float:
        """A sample of the metrics."""
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def tags(self) -> list[list[float]]:
        """What the model was given, batch by batch."""
        return [[float(work.values[0]) for work in batch] for batch in self.scorer.batches]


@contextlib.asynccontextmanager
async def bench(tokens: int = 100, positions: int = 100) -> AsyncIterator[Bench]:
    limits = BatchingConfig(max_batch_tokens=tokens, max_queued_positions=positions, max_request_positions=positions)
    with ThreadPoolExecutor(1) as thread:
        made = Bench(thread, limits)
        try:
            yield made
        finally:
            made.scorer.open()
            await made.batcher.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def tags_of(tasks: list[asyncio.Task[Answer]]) -> list[float]:
    return [float((await task).scores.log_probs[0]) for task in tasks]


def test_lone_request_is_computed_at_once() -> None:
    async def test() -> None:
        async with bench() as b:
            answer = await b.batcher.submit(work(7))
            assert answer.scores.log_probs.tolist() == [7]
            assert b.count("teacher_batches_total", reason="idle") == 1

    run(test())


def test_what_comes_while_the_model_computes_is_merged() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(1), work(2), work(3))
            b.scorer.open()
            assert await tags_of(tasks) == [1, 2, 3]
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
            assert await tags_of(tasks) == [0, 1, 2, 3, 4]
            assert b.tags == [[0], [1], [2, 3], [4]]  # 4 does not overtake 2, though it fits beside 1
            assert b.count("teacher_batches_total", reason="full") == 2

    run(test())


def test_oversize_request_goes_alone() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, cost=2), work(2, cost=50), work(3, cost=2))
            b.scorer.open()
            assert await tags_of(tasks) == [0, 1, 2, 3]
            assert b.tags == [[0], [1], [2], [3]]

    run(test())


def test_full_batch_is_handed_over_while_the_model_computes_a_partial_one_is_not() -> None:
    async def test() -> None:
        async with bench(tokens=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, cost=5))
            assert b.count("teacher_queue_requests") == 1
            tasks += await b.submit(work(2, cost=5), work(3, cost=5))
            assert b.count("teacher_queue_requests") == 1  # 1 and 2 wait at the model, 3 may still be joined
            tasks += await b.submit(work(4, cost=5))
            assert b.count("teacher_queue_requests") == 2  # one batch ahead, no more
            b.scorer.open()
            assert await tags_of(tasks) == [0, 1, 2, 3, 4]
            assert b.tags == [[0], [1, 2], [3, 4]]

    run(test())


def test_full_queue_refuses_at_once_and_recovers() -> None:
    async def test() -> None:
        async with bench(positions=10) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0, positions=10), work(1, positions=6), work(2, positions=4))
            with pytest.raises(Overloaded, match="10 positions wait, 1 more would exceed 10"):
                await b.batcher.submit(work(3))
            assert b.count("teacher_rejected_total", reason="queue_full") == 1
            assert b.count("teacher_queue_positions") == 10
            b.scorer.open()
            assert await tags_of(tasks) == [0, 1, 2]
            assert await tags_of(await b.submit(work(4))) == [4]
            assert b.count("teacher_queue_positions") == 0

    run(test())


def test_requests_without_positions_are_bounded_too() -> None:
    async def test() -> None:
        async with bench(positions=2) as b:
            b.scorer.hold()
            empty = [work(i, cost=0, positions=0) for i in range(4)]
            tasks = await b.submit(*empty[:3])
            with pytest.raises(Overloaded):
                await b.batcher.submit(empty[3])
            b.scorer.open()
            assert await tags_of(tasks) == [0, 1, 2]

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
            assert await tags_of(first + in_time) == [0, 2]
            assert b.tags == [[0], [2]]
            assert b.count("teacher_expired_total") == 1

    run(test())


def test_cancelled_request_leaves_the_queue_at_once() -> None:
    async def test() -> None:
        async with bench(positions=2) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1, positions=2))
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            assert b.count("teacher_queue_positions") == 0
            tasks[1:] = await b.submit(work(2, positions=2))
            b.scorer.open()
            assert await tags_of(tasks) == [0, 2]
            assert b.tags == [[0], [2]]
            assert b.count("teacher_cancelled_total") == 1

    run(test())


def test_caller_that_leaves_as_its_batch_is_cut_is_not_computed() -> None:
    async def test() -> None:
        async with bench(tokens=5) as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1))
            tasks[1].cancel()  # its task has not run yet when the next line cuts a full batch
            b.scorer.open()
            assert (await b.batcher.submit(work(2, cost=5))).scores.log_probs.tolist() == [2]
            await asyncio.gather(tasks[1], return_exceptions=True)
            assert await tags_of(tasks[:1]) == [0]
            assert b.tags == [[0], [2]]
            assert b.count("teacher_cancelled_total") == 1

    run(test())


def test_caller_that_leaves_during_compute_spoils_nothing() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1), work(2))
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            b.scorer.open()
            assert await tags_of(tasks[1:]) == [1, 2]
            assert b.count("teacher_cancelled_total") == 1

    run(test())


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), InternalError("not finite")])
def test_failing_model_answers_every_member_and_the_next_batch_runs(failure: Exception) -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            b.scorer.failure = failure
            tasks = await b.submit(work(0), work(1), work(2))
            b.scorer.release(2)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [InternalError] * 3
            assert len({id(outcome) for outcome in outcomes}) == 3
            b.scorer.failure = None
            b.scorer.open()
            assert await tags_of(await b.submit(work(3))) == [3]

    run(test())


def test_wrong_number_of_answers_is_an_error_of_its_own() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.answers_missing = 1
            with pytest.raises(InternalError, match="0 answers to 1 requests"):
                await b.batcher.submit(work(0))

    run(test())


def test_close_answers_the_accepted_and_refuses_the_new() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1), work(2))
            closing = asyncio.create_task(b.batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                await b.batcher.submit(work(3))
            assert not closing.done()
            assert b.batcher.unanswered == 3
            b.scorer.open()
            await closing
            assert await tags_of(tasks) == [0, 1, 2]
            assert b.count("teacher_batches_total", reason="drain") == 1
            assert b.count("teacher_rejected_total", reason="draining") == 1

    run(test())


def test_waiting_and_computing_are_told_apart() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            tasks = await b.submit(work(0), work(1))
            while not b.scorer.batches:
                await asyncio.sleep(0.001)
            b.clock.now = 3.0
            b.scorer.release()
            first = await tasks[0]
            assert (first.queue_seconds, first.compute_seconds) == (0.0, 3.0)
            b.clock.now = 5.0
            b.scorer.release()
            second = await tasks[1]
            assert second.queue_seconds + second.compute_seconds == 5.0
            assert b.count("teacher_queue_wait_seconds_count") == 2
            assert b.count("teacher_compute_seconds_count") == 2

    run(test())


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 30),  # cost
        st.integers(0, 5),  # positions
        st.integers(0, 3),  # turns of the loop before it
        st.booleans(),  # cancelled
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_every_request_is_answered_once_with_its_own_answer(requests: list[tuple[int, int, int, bool]]) -> None:
    async def test() -> None:
        async with bench(tokens=20, positions=30) as b:
            tasks: list[asyncio.Task[Answer]] = []
            for tag, (cost, positions, turns, _) in enumerate(requests):
                for _ in range(turns):
                    await asyncio.sleep(0)
                tasks.append(asyncio.create_task(b.batcher.submit(work(tag, cost, positions))))
            for task, (*_, cancelled) in zip(tasks, requests, strict=True):
                if cancelled:
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)

            for tag, outcome in enumerate(outcomes):
                if isinstance(outcome, Answer):
                    assert np.array_equal(outcome.scores.log_probs, [tag])
                else:
                    assert isinstance(outcome, Overloaded | asyncio.CancelledError)
            computed = [tag for batch in b.tags for tag in batch]
            assert computed == sorted(set(computed))  # once, and oldest first
            answered = {tag for tag, outcome in enumerate(outcomes) if isinstance(outcome, Answer)}
            assert answered <= set(computed)
            for batch in b.scorer.batches:
                assert len(batch) == 1 or sum(item.cost for item in batch) <= 20
            assert b.count("teacher_queue_positions") == b.count("teacher_queue_requests") == 0

    run(test())
