"""StreamScore over a real channel: answers, credits, callers, the end of a stream; the batcher is a fake."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.batcher_fakes import FakeBatcher, answer_to
from support.teacher_fakes import SERVED

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from teacher_server.batching.config import BatchingConfig
from teacher_server.metrics import Metrics
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.health import Health
from teacher_server.serve.lifecycle import Lifecycle, State
from teacher_server.serve.server import build
from teacher_server.serve.service import TeacherService


class Bench:
    """A server and a client in one loop."""

    def __init__(self, config: ServeConfig) -> None:
        self.batcher = FakeBatcher(config.batching.max_queued_positions)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.service = TeacherService(config, self.metrics)
        self.service.open(SERVED, cast(Any, self.batcher))
        self.address: str
        self.stub: rpc.TeacherServiceStub

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that needs no more than other tasks' turns."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def bench(pool: int = 10_000, **values: Any) -> AsyncIterator[Bench]:
    batching = BatchingConfig(max_queued_positions=pool, max_request_positions=min(pool, 1000))
    config = ServeConfig(teacher=Path("unused"), listen="127.0.0.1:0", batching=batching, **values)
    made = Bench(config)
    running, address = build(config, made.service, Health(Lifecycle(State.SERVING)), made.metrics)
    await running.start()
    made.address = str(address)
    async with grpc.aio.insecure_channel(made.address) as channel:
        made.stub = rpc.TeacherServiceStub(channel)
        try:
            yield made
        finally:
            made.batcher.release()
            await running.stop(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def question(candidates: Iterable[int] = (1, 2, 3), history: Iterable[int] = (5,)) -> ScoreQuery:
    history, candidates = list(history), list(candidates)
    return ScoreQuery(
        HistoryMode.WINDOW,
        np.array(history, np.int32),
        np.array([len(history)], np.int32),
        np.array(candidates, np.int32),
        np.array([len(candidates)], np.int32),
    )


def rows(count: int) -> ScoreQuery:
    """A question of so many positions."""
    ones = np.ones(count, np.int32)
    return ScoreQuery(HistoryMode.WINDOW, ones, ones, ones, ones)


def on_stream(query: ScoreQuery, request_id: int) -> pb.StreamScoreRequest:
    return pb.StreamScoreRequest(request=wire.encode_query(query, request_id))


async def status_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


def test_stream_answers_out_of_order_by_id() -> None:
    async def test() -> None:
        async with bench() as b:
            queries = {i: question([i, i + 1], history=range(i % 16)) for i in range(20)}
            call = b.stub.StreamScore(on_stream(query, i) for i, query in queries.items())
            seen = set()
            async for answer in call:
                assert answer.WhichOneof("result") == "response"
                assert answer.response.request_id == answer.request_id
                reply = wire.decode_reply(answer.response, queries[answer.request_id])
                assert np.array_equal(reply.log_probs, answer_to(queries[answer.request_id]))
                seen.add(answer.request_id)
            assert seen == set(queries)
            assert b.count("teacher_requests_total", method="StreamScore", code="OK") == 20

    run(test())


def test_refused_request_leaves_the_stream_alive() -> None:
    async def test() -> None:
        async with bench() as b:
            call = b.stub.StreamScore()
            for request_id, candidates in ((1, [1]), (2, [100]), (3, [3])):
                await call.write(on_stream(question(candidates), request_id))
            seen = {answer.request_id: answer for answer in [await call.read() for _ in range(3)]}
            assert seen[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "candidate_tokens" in seen[2].error.message
            assert {i for i, answer in seen.items() if answer.WhichOneof("result") == "response"} == {1, 3}
            await call.write(on_stream(question([4]), 4))
            assert (await call.read()).response.request_id == 4
            await call.done_writing()
            assert await call.read() == grpc.aio.EOF  # type: ignore[attr-defined]
            assert await call.code() == grpc.StatusCode.OK

    run(test())


def test_request_id_in_flight_is_refused_and_free_again_after_the_answer() -> None:
    async def test() -> None:
        async with bench() as b:
            b.batcher.hold()
            call = b.stub.StreamScore()
            await call.write(on_stream(question([1]), 7))
            await call.write(on_stream(question([2]), 7))
            refused = await call.read()
            assert refused.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "request_id: 7 is in flight" in refused.error.message
            b.batcher.release()
            assert (await call.read()).WhichOneof("result") == "response"
            await call.write(on_stream(question([3]), 7))
            assert (await call.read()).WhichOneof("result") == "response"
            call.cancel()

    run(test())


def test_stream_reads_no_further_than_its_bound() -> None:
    async def test() -> None:
        async with bench(stream_in_flight=3) as b:
            b.batcher.hold()
            call = b.stub.StreamScore(on_stream(question([1]), i) for i in range(10))
            await b.until(lambda: b.count("teacher_in_flight_requests") == 3)
            await asyncio.sleep(0.1)
            assert b.count("teacher_in_flight_requests") == 3
            b.batcher.release()
            assert len([answer async for answer in call]) == 10

    run(test())


def test_stream_that_goes_away_takes_its_requests_with_it() -> None:
    async def test() -> None:
        async with bench() as b:
            b.batcher.hold()
            call = b.stub.StreamScore()
            for i in range(5):
                await call.write(on_stream(question([i]), i))
            await b.until(lambda: b.batcher.unanswered == 5)
            call.cancel()
            await b.until(lambda: b.batcher.unanswered == 0)
            assert b.batcher.cancelled == 5
            await b.until(lambda: b.count("teacher_credit_positions") == 0)

    run(test())


def test_drain_answers_the_accepted_ends_streams_and_refuses_the_new() -> None:
    async def test() -> None:
        async with bench() as b:
            b.batcher.hold()
            unary = b.stub.Score(wire.encode_query(question([1]), 1))
            call = b.stub.StreamScore()
            for i in range(3):
                await call.write(on_stream(question([i]), i))
            await b.until(lambda: b.count("teacher_in_flight_requests") == 4)
            draining = asyncio.create_task(b.service.drain())
            await asyncio.sleep(0.02)
            assert (await status_of(b.stub.Score(wire.encode_query(question(), 2))))[0] == "UNAVAILABLE"
            late = b.stub.StreamScore()
            assert (await status_of(late.read()))[0] == "UNAVAILABLE"
            assert not draining.done()
            b.batcher.release()
            await unary
            assert {(await call.read()).response.request_id for _ in range(3)} == {0, 1, 2}
            assert (await status_of(call.read()))[0] == "UNAVAILABLE"
            await draining

    run(test())


def test_idle_stream_does_not_hold_up_the_drain() -> None:
    async def test() -> None:
        async with bench() as b:
            call = b.stub.StreamScore()
            await call.write(on_stream(question([1]), 1))
            await call.read()
            await b.service.drain()
            assert await status_of(call.read()) == ("UNAVAILABLE", "the teacher is stopping")

    run(test())


def test_answers_carry_grants_and_give_back_what_was_spent() -> None:
    async def test() -> None:
        async with bench(pool=100) as b:
            call = b.stub.StreamScore()
            await call.write(on_stream(rows(30), 1))
            assert (await call.read()).credit == 30 + 100, "what it owed, and all there is"
            assert b.count("teacher_credit_positions") == 100
            await call.write(on_stream(rows(30), 1))
            assert (await call.read()).credit == 30
            await call.write(on_stream(question([100]), 2))
            refused = await call.read()
            assert (refused.WhichOneof("result"), refused.credit) == ("error", 1)
            await call.write(pb.StreamScoreRequest(request=pb.ScoreRequest(request_id=3)))
            assert (await call.read()).credit == 1, "a request without positions spends one"
            call.cancel()

    run(test())


def test_two_streams_share_and_the_one_that_stays_gets_all() -> None:
    async def test() -> None:
        async with bench(pool=100) as b:
            first = b.stub.StreamScore()
            await first.write(on_stream(rows(1), 1))
            assert (await first.read()).credit == 1 + 100
            b.batcher.hold()
            await first.write(on_stream(rows(60), 2))
            await b.until(lambda: b.batcher.unanswered == 1)
            second = b.stub.StreamScore()  # not before the first is answered: an open stream has a share
            await second.write(on_stream(rows(3), 1))
            await b.until(lambda: b.batcher.unanswered == 2)
            b.batcher.release()
            assert (await first.read()).credit == 10, "the second holds nothing yet"
            assert (await second.read()).credit == 3 + 50
            first.cancel()
            await b.until(lambda: b.count("teacher_credit_positions") == 50)
            await second.write(on_stream(rows(1), 2))
            assert (await second.read()).credit == 1 + 50
            await second.done_writing()
            assert await second.read() is grpc.aio.EOF  # type: ignore[attr-defined]
            await b.until(lambda: b.count("teacher_credit_positions") == 0)

    run(test())


def test_what_is_granted_comes_in_and_what_is_not_may_be_refused() -> None:
    async def test() -> None:
        async with bench(pool=10) as b:
            call = b.stub.StreamScore()
            await call.write(on_stream(rows(1), 1))
            await call.read()
            b.batcher.hold()
            for request_id, positions in ((2, 4), (3, 6), (4, 1)):
                await call.write(on_stream(rows(positions), request_id))
            refused = await call.read()
            assert (refused.request_id, refused.error.code) == (4, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            assert [s.granted for s in b.batcher.submitted] == [True] * 3
            b.batcher.release()
            assert {(await call.read()).request_id for _ in range(2)} == {2, 3}
            await call.write(on_stream(rows(10), 5))
            assert (await call.read()).WhichOneof("result") == "response"
            call.cancel()

    run(test())


def test_callers_are_known_by_name_or_else_by_connection() -> None:
    async def test() -> None:
        async with bench() as b:
            named = b.stub.StreamScore(iter([on_stream(question(), 1)]), metadata=(("teacher-client", "trainer 7"),))
            async for _ in named:
                pass
            await b.stub.Score(wire.encode_query(question(), 2), metadata=(("teacher-client", "x"),))
            await b.stub.Score(wire.encode_query(question(), 3))
            callers = [s.caller for s in b.batcher.submitted]
            assert callers[:2] == ["trainer 7", "x"]
            assert callers[2].startswith("ipv4:127.0.0.1:")

    run(test())


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_name_that_is_none_is_invalid(name: str) -> None:
    async def test() -> None:
        async with bench() as b:
            metadata = (("teacher-client", name),)
            code, details = await status_of(b.stub.Score(wire.encode_query(question(), 2), metadata=metadata))
            assert code == "INVALID_ARGUMENT" and "1 to 64 printable ASCII" in details
            assert (await status_of(b.stub.StreamScore(metadata=metadata).read()))[0] == "INVALID_ARGUMENT"

    run(test())


def test_eight_trainers_that_keep_to_their_credits_are_never_refused() -> None:
    """A pool that holds hardly more than one request of each."""

    async def trainer(stub: rpc.TeacherServiceStub, name: str) -> int:
        call = stub.StreamScore(metadata=(("teacher-client", name),))
        balance = in_flight = answered = sent = 0
        while answered < 40:
            while sent < 40 and (in_flight == 0 or balance >= 5):
                await call.write(on_stream(rows(5), sent + 1))
                balance, in_flight, sent = balance - 5, in_flight + 1, sent + 1
            message = await call.read()
            assert message.WhichOneof("result") == "response", message.error.message
            balance, in_flight, answered = balance + message.credit, in_flight - 1, answered + 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        return answered

    async def test() -> None:
        async with bench(pool=60) as b:
            b.batcher.pause = 0.002
            answered = await asyncio.gather(*(trainer(b.stub, f"t{i}") for i in range(8)))
            assert answered == [40] * 8
            assert b.batcher.refused == 0
            assert b.count("teacher_rejected_total", reason="queue_full") == 0
            assert all(s.granted for s in b.batcher.submitted) and len(b.batcher.submitted) == 8 * 40
            assert b.batcher.most_waiting <= 60 + 8 * 5

    run(test())


def test_the_trainers_own_client_keeps_to_its_credits() -> None:
    """Eight clients that send far ahead, against a pool of little more than one request of each."""

    def trainer(address: str) -> None:
        client = GrpcTeacher(address, ClientConfig())
        try:
            queries = [question([i, i + 1, 7], history=range(i % 9)) for i in range(20)]
            futures = [client.submit(query) for query in [*queries, rows(4), rows(11)]]
            for query, future in zip(queries, futures, strict=False):
                assert future.result(30).log_probs.tobytes() == answer_to(query).tobytes()
            assert all(len(future.result(30).log_probs) for future in futures)
        finally:
            client.close()

    async def test() -> None:
        async with bench(pool=24) as b:
            b.batcher.pause = 0.002
            await asyncio.gather(*(asyncio.to_thread(trainer, b.address) for _ in range(8)))
            assert b.batcher.refused == 0
            assert all(s.granted for s in b.batcher.submitted) and len(b.batcher.submitted) == 8 * 22
            assert len({s.caller for s in b.batcher.submitted}) == 8

    run(test())


def test_an_old_stream_is_asked_to_move_and_loses_nothing() -> None:
    """What was asked before and while the caller moves is answered; it then ends as its caller ended it."""

    async def test() -> None:
        async with bench(max_connection_age_seconds=0.02) as b:
            b.batcher.hold()
            call = b.stub.StreamScore()
            await call.write(on_stream(question(), 1))
            closing = await call.read()
            assert closing.closing and closing.WhichOneof("result") is None and closing.credit == 0
            await call.write(on_stream(question(), 2))
            b.batcher.release()
            answers = [await call.read(), await call.read()]
            assert {answer.request_id for answer in answers} == {1, 2}
            assert all(answer.WhichOneof("result") == "response" for answer in answers)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
            assert await call.code() is grpc.StatusCode.OK

    run(test())


def test_an_old_stream_that_stays_is_cut_off_after_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.serve.stream.READS_ON", 0.001)

    async def test() -> None:
        async with bench(max_connection_age_seconds=0.02) as b:
            b.batcher.hold()
            call = b.stub.StreamScore()
            await call.write(on_stream(question(), 1))
            assert (await call.read()).closing
            await b.until(lambda: not b.service._reads)
            b.batcher.release()
            assert (await call.read()).request_id == 1
            with pytest.raises(grpc.aio.AioRpcError, match="open another") as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_trainer_s_client_moves_without_a_failed_attempt(transport: str) -> None:
    """From connection to connection, many times, with requests in flight all the time."""

    def trainer(address: str) -> None:
        client = GrpcTeacher(address, ClientConfig(transport=transport))
        try:
            queries = [question([i % 50, i % 50 + 1, 7], history=range(i % 9)) for i in range(400)]
            futures = [client.submit(query) for query in queries]
            for query, future in zip(queries, futures, strict=True):
                assert future.result(60).log_probs.tobytes() == answer_to(query).tobytes()
            assert client.failure_stats.retries == 0
        finally:
            client.close()

    async def test() -> None:
        async with bench(max_connection_age_seconds=0.05) as b:
            b.batcher.pause = 0.02
            await asyncio.to_thread(trainer, b.address)
            assert len(b.batcher.submitted) == 400
            if transport == "stream":
                assert b.count("teacher_requests_total", method="StreamScore", code="OK") == 400

    run(test())
