"""The service over a real channel, with a scorer that needs no model."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.teacher_fakes import HEADER, FakeScorer, expected_log_probs

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server import serve
from teacher_server.answers.table import AnswerTable
from teacher_server.batching.batcher import Batcher
from teacher_server.batching.config import BatchingConfig
from teacher_server.metrics import Metrics
from teacher_server.serve import checks
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.health import Health
from teacher_server.serve.interceptors import SERVICE, GoneCallers
from teacher_server.serve.lifecycle import Lifecycle, State
from teacher_server.serve.server import build
from teacher_server.serve.service import TeacherService


class Bench:
    """A server and a client in one loop."""

    def __init__(self, config: ServeConfig) -> None:
        self.scorer = FakeScorer()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.service = TeacherService(config, self.metrics)
        self.channel: Any  # a grpc.aio.Channel, of whose defaults the stubs do not know
        self.stub: rpc.TeacherServiceStub

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that needs no more than other tasks' turns."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def bench(is_loaded: bool = True, **values: Any) -> AsyncIterator[Bench]:
    config = ServeConfig(teacher=Path("unused"), listen="127.0.0.1:0", **values)
    made = Bench(config)
    with ThreadPoolExecutor(1) as thread:
        if is_loaded:
            rows = AnswerTable(0, made.scorer.costs, HEADER.tokeniser.vocabulary.sot)
            made.service.open(made.scorer.served, Batcher(made.scorer, rows, thread, config.batching, made.metrics))
        running, address = build(config, made.service, Health(Lifecycle(State.SERVING)), made.metrics)
        await running.start()
        async with grpc.aio.insecure_channel(str(address)) as made.channel:
            made.stub = rpc.TeacherServiceStub(made.channel)
            try:
                yield made
            finally:
                made.scorer.open()
                await running.stop(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def question(candidates: Iterable[int] = (1, 2, 3), history: Iterable[int] = (5,), **values: Any) -> ScoreQuery:
    history, candidates = list(history), list(candidates)
    return ScoreQuery(
        HistoryMode.WINDOW,
        np.array(history, np.int32),
        np.array([len(history)], np.int32),
        np.array(candidates, np.int32),
        np.array([len(candidates)], np.int32),
        **values,
    )


async def status_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


def test_get_teacher_describes_what_is_served() -> None:
    async def test() -> None:
        async with bench(max_message_bytes=2**20) as b:
            info = wire.decode_info(await b.stub.GetTeacher(pb.GetTeacherRequest()))
            assert info.weights_revision == HEADER.revision
            assert info.tokeniser.fingerprint == HEADER.tokeniser.fingerprint
            assert (info.limits.max_window, info.limits.max_message_bytes) == (15, 2**20)
            assert (info.device, info.compute_dtype, info.parameters) == ("cpu", "float32", 7)

    run(test())


def test_score_answers_with_scores_revision_and_timing() -> None:
    async def test() -> None:
        async with bench() as b:
            query = question(include_candidate_mass=True)
            response = await b.stub.Score(wire.encode_query(query, request_id=9))
            reply = wire.decode_reply(response, query)
            assert response.request_id == 9
            assert np.array_equal(reply.log_probs, expected_log_probs(query))
            assert reply.candidate_mass is not None and reply.candidate_mass.tolist() == [0.5]
            assert reply.weights_revision == HEADER.revision
            assert b.count("teacher_requests_total", method="Score", code="OK") == 1
            assert b.count("teacher_request_seconds_count", method="Score") == 1

    run(test())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ScoreRequest(), "mode: 0 is not WINDOW"),
        (pb.ScoreRequest(mode=pb.HISTORY_MODE_WINDOW, history_tokens=b"abc"), "history_tokens: 3 bytes"),
        (wire.encode_query(question(candidates=[100]), 0), "candidate_tokens[0]: 100 is not a cell"),
        (wire.encode_query(question(history=[1] * 16), 0), "history_lengths[0]: 16 tokens, at most 15"),
        (wire.encode_query(question(candidates=[1] * 65), 0), "candidate_tokens: 65 candidates, at most 64"),
    ],
)
def test_bad_request_is_invalid_argument(request_: pb.ScoreRequest, message: str) -> None:
    async def test() -> None:
        async with bench(batching=BatchingConfig(max_request_candidates=64)) as b:
            code, details = await status_of(b.stub.Score(request_))
            assert code == "INVALID_ARGUMENT"
            assert message in details
            assert b.count("teacher_rejected_total", reason="invalid") == 1
            assert b.scorer.batches == []

    run(test())


def test_refusals_leave_no_garbage() -> None:
    """A frame that keeps the exception that it caught is a cycle, with the request in it, until Python looks for it."""

    package = str(Path(serve.__file__).parent)

    def abandoned() -> int:
        frames = [found for found in gc.get_objects() if type(found) is types.FrameType]
        ours = [frame.f_locals for frame in frames if frame.f_code.co_filename.startswith(package)]
        return sum(isinstance(value, pb.ScoreRequest) for values in ours for value in values.values())

    async def test() -> None:
        async with bench() as b:
            bad = pb.ScoreRequest(mode=pb.HISTORY_MODE_WINDOW, history_tokens=b"abc")
            for _ in range(3):
                await status_of(b.stub.Score(bad))
            gc.collect()
            before = abandoned()
            gc.disable()
            try:
                for _ in range(20):
                    await status_of(b.stub.Score(bad))
                    call = b.stub.StreamScore(iter([pb.StreamScoreRequest(request=bad)]))
                    assert {answer.error.code async for answer in call} == {3}
                    await status_of(b.channel.stream_stream(f"/{SERVICE}/StreamScore")(iter([b"\xff"])).read())
                assert abandoned() == before == 0
            finally:
                gc.enable()

    run(test())


def test_loading_teacher_is_unavailable() -> None:
    async def test() -> None:
        async with bench(is_loaded=False) as b:
            for call in (b.stub.GetTeacher(pb.GetTeacherRequest()), b.stub.Score(wire.encode_query(question(), 0))):
                assert await status_of(call) == ("UNAVAILABLE", "the teacher is loading")
            assert b.count("teacher_rejected_total", reason="loading") == 2

    run(test())


def test_full_queue_is_resource_exhausted_at_once() -> None:
    async def test() -> None:
        batching = BatchingConfig(max_queued_positions=1, max_request_positions=1)
        async with bench(batching=batching) as b:
            b.scorer.hold()
            accepted = b.stub.Score(wire.encode_query(question(), 1))
            await b.until(lambda: b.count("teacher_queue_requests") == 1)
            code, _ = await status_of(b.stub.Score(wire.encode_query(question(), 2)))
            assert code == "RESOURCE_EXHAUSTED"
            b.scorer.open()
            await accepted

    run(test())


def test_unexpected_failure_is_internal_and_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check", None)

    async def test() -> None:
        async with bench() as b:
            code, details = await status_of(b.stub.Score(wire.encode_query(question(), 0)))
            assert code == "INTERNAL"
            assert "TypeError" in details and "NoneType" not in details
            assert b.count("teacher_requests_total", method="Score", code="INTERNAL") == 1

    run(test())


def test_caller_that_gives_up_is_not_computed() -> None:
    async def test() -> None:
        async with bench() as b:
            b.scorer.hold()
            first = b.stub.Score(wire.encode_query(question([1]), 1))
            await b.until(lambda: len(b.scorer.batches) == 1)
            late = b.stub.Score(wire.encode_query(question([2]), 2), timeout=0.2)
            assert (await status_of(late))[0] == "DEADLINE_EXCEEDED"
            await b.until(lambda: b.count("teacher_queue_requests") == 1)
            gone = b.stub.Score(wire.encode_query(question([3]), 3))
            await b.until(lambda: b.count("teacher_queue_requests") == 2)
            gone.cancel()
            await b.until(lambda: b.count("teacher_queue_requests") == 1)
            b.scorer.open()
            await first
            assert len(b.scorer.batches) == 1
            dropped = b.count("teacher_cancelled_total") + b.count("teacher_expired_total")
            assert dropped == 2

    run(test())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_random_bytes_are_refused_and_the_server_lives_on(messages: list[bytes]) -> None:
    async def test() -> None:
        async with bench() as b:
            unary = b.channel.unary_unary(f"/{SERVICE}/Score")
            for message in messages:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await unary(message)
            call = b.channel.stream_stream(f"/{SERVICE}/StreamScore")(iter(messages))
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert (await b.stub.Score(wire.encode_query(question(), 1))).request_id == 1
            for method in ("Score", "StreamScore"):
                assert b.count("teacher_requests_total", method=method, code="INTERNAL") == 0

    run(test())


def test_what_is_no_message_is_invalid_argument() -> None:
    async def test() -> None:
        async with bench() as b:
            code, details = await status_of(b.channel.unary_unary(f"/{SERVICE}/Score")(b"\xff\xff"))
            assert code == "INVALID_ARGUMENT"
            assert "2 bytes that are not a message" in details
            call = b.channel.stream_stream(f"/{SERVICE}/StreamScore")(iter([b"\xff\xff"]))
            assert (await status_of(call.read()))[0] == "INVALID_ARGUMENT"

    run(test())


def test_oversize_message_is_resource_exhausted() -> None:
    async def test() -> None:
        async with bench(max_message_bytes=1024) as b:
            code, _ = await status_of(b.stub.Score(wire.encode_query(question(range(99), history=range(900)), 1)))
            assert code == "RESOURCE_EXHAUSTED"
            await b.stub.Score(wire.encode_query(question(), 1))

    run(test())


def test_reflection_lists_the_services() -> None:
    async def test() -> None:
        async with bench() as b:
            stub = reflection_pb2_grpc.ServerReflectionStub(b.channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            call.cancel()
            health = health_pb2_grpc.HealthStub(b.channel)
            assert (
                await health.Check(health_pb2.HealthCheckRequest())
            ).status == health_pb2.HealthCheckResponse.SERVING

    run(test())


def test_callers_that_have_gone_are_no_errors_of_the_log() -> None:
    """gRPC logs a send that failed; anything else it logs is kept."""

    def is_kept(error: Exception) -> bool:
        made = logging.LogRecord("grpc", logging.ERROR, "", 0, "x", (), (type(error), error, None))
        return bool(GoneCallers().filter(made))

    assert not is_kept(cygrpc.ExecuteBatchError('Failed "execute_batch"'))
    assert is_kept(ValueError("x"))
    assert GoneCallers().filter(logging.LogRecord("grpc", logging.ERROR, "", 0, "x", (), None))
