"""What callers may hold: connections by file descriptors, messages by what is valid, calls, and lines of the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from shared import wire
from shared.errors import ConfigError
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.metrics import Metrics
from teacher_server.serve import limits
from teacher_server.serve.config import BatchingConfig, ServeConfig
from teacher_server.serve.health import HEALTH, NAMES, Health
from teacher_server.serve.lifecycle import Lifecycle, State
from teacher_server.serve.server import build
from teacher_server.serve.service import TeacherService

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@contextlib.asynccontextmanager
async def serving(lifecycle: Lifecycle, **values: Any) -> AsyncIterator[tuple[Any, CollectorRegistry]]:
    """A server whose teacher is never loaded, and a channel to it, of whose defaults the stubs do not know."""
    settings = ServeConfig(teacher=Path("unused"), listen="127.0.0.1:0", **values)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    service = TeacherService(settings, metrics)
    running, address = build(settings, service, Health(lifecycle), metrics)
    await running.start()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        try:
            yield channel, registry
        finally:
            await running.stop(0)


async def status_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_health_says_the_state() -> None:
    async def test() -> None:
        lifecycle = Lifecycle()
        serving_, not_serving, unknown = (health_pb2.HealthCheckResponse.ServingStatus.Value(name) for name in (
            "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"))  # fmt: skip
        async with serving(lifecycle) as (channel, _):
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            stranger = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert (await watch.read()).status == not_serving
            assert (await stranger.read()).status == unknown
            for state, expected in ((State.SERVING, serving_), (State.DRAINING, not_serving)):
                lifecycle.enter(state)
                assert (await watch.read()).status == expected
                for name in NAMES:
                    assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == expected
                listed = (await stub.List(health_pb2.HealthListRequest())).statuses
                assert {name: each.status for name, each in listed.items()} == dict.fromkeys(NAMES, expected)
            lifecycle.enter(State.STOPPED)
            assert await watch.read() is grpc.aio.EOF  # type: ignore[attr-defined]
            code, message = await status_of(stub.Check(health_pb2.HealthCheckRequest(service="nobody")))
            assert (code, NAMES[1] in message) == ("NOT_FOUND", True)

    run(test)


def test_every_method_that_reflection_tells_of_is_served(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is called, with whatever bytes: a status, and not a line in the log."""

    async def test() -> None:
        async with serving(Lifecycle(State.SERVING)) as (channel, _):
            call = channel.stream_stream(REFLECTION)
            asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            (told,) = [reflection_pb2.ServerReflectionResponse.FromString(m) async for m in call(iter([asked]))]
            names = [service.name for service in told.list_services_response.service]
            assert HEALTH in names and limits.SERVICE in names
            for name in names:
                described = descriptor_pb2.ServiceDescriptorProto()
                descriptor_pool.Default().FindServiceByName(name).CopyToProto(described)
                for method in described.method:
                    for data in (b"", b"\xff" * 9, bytes(limits.PUBLIC_BYTES + 1)):
                        answers = channel.stream_stream(f"/{name}/{method.name}")(iter([data]))
                        with contextlib.suppress(grpc.aio.AioRpcError):
                            async with asyncio.timeout(5):
                                async for _ in answers:
                                    break
                        answers.cancel()
                        code = await answers.code()
                        assert code.name not in ("UNKNOWN", "UNIMPLEMENTED", "INTERNAL"), (name, method.name, data)
            for path in ("/nobody/Nothing", f"/{HEALTH}/Nothing", f"/{limits.SERVICE}/Nothing", "/", "x"):
                code, _ = await status_of(channel.unary_unary(path)(b"\xff"))
                assert code == "UNIMPLEMENTED"
            code, message = await status_of(channel.unary_unary(f"/{HEALTH}/Check")(b"\xff"))
            assert (code, "1 bytes that are not" in message) == ("INVALID_ARGUMENT", True)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert caplog.records == []


def test_calls_are_counted_until_they_end() -> None:
    """Two streams, and not a third one, until one has gone; refused before anything is read."""

    async def test() -> None:
        async with serving(Lifecycle(State.SERVING), max_calls=2) as (channel, registry):

            def stream() -> Any:
                return channel.stream_stream(f"/{limits.SERVICE}/StreamScore")()

            held = [stream(), stream()]
            for call in held:
                await call.wait_for_connection()
            while registry.get_sample_value("teacher_open_streams") != 2:
                await asyncio.sleep(0.01)
            code, message = await status_of(channel.unary_unary(f"/{limits.SERVICE}/Score")(bytes(1000)))
            assert code == "RESOURCE_EXHAUSTED" and "2 calls are open" in message
            assert registry.get_sample_value("teacher_rejected_total", {"reason": "calls"}) == 1
            held[0].cancel()
            while registry.get_sample_value("teacher_open_streams") != 1:
                await asyncio.sleep(0.01)
            code, message = await status_of(channel.unary_unary(f"/{limits.SERVICE}/Score")(b""))
            assert (code, message) == ("UNAVAILABLE", "the teacher is loading")

    run(test)


def test_a_connection_has_few_public_calls() -> None:
    async def test() -> None:
        async with serving(Lifecycle(State.SERVING)) as (channel, _):
            stub = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(limits.PUBLIC_CALLS)]
            for watch in watches:
                await watch.read()
            code, _ = await status_of(stub.Check(health_pb2.HealthCheckRequest()))
            assert code == "RESOURCE_EXHAUSTED"
            watches[0].cancel()
            while True:  # until the server knows
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Check(health_pb2.HealthCheckRequest())
                    break

    run(test)


def test_who_sends_nothing_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """All seats of health are taken by calls without a message; others are answered long before these time out."""
    monkeypatch.setattr(limits, "PUBLIC_READS", 2)
    monkeypatch.setattr(limits, "PUBLIC_SECONDS", 600.0)

    async def test() -> None:
        async with serving(Lifecycle(State.SERVING)) as (channel, _):
            check = f"/{HEALTH}/Check"
            silent = [channel.stream_stream(check)() for _ in range(limits.PUBLIC_CALLS - 1)]
            for call in silent:
                await call.wait_for_connection()
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert {(await call.code()).name for call in silent[:2]} == {"UNAVAILABLE"}

    run(test)


def test_compressed_messages_are_refused() -> None:
    async def test() -> None:
        async with serving(Lifecycle(State.SERVING)) as (channel, _):
            call = channel.unary_unary(f"/{HEALTH}/Check")(bytes(10000), compression=grpc.Compression.Gzip)
            code, message = await status_of(call)
            assert code == "UNIMPLEMENTED" and "gzip" in message

    run(test)


@pytest.mark.parametrize("mode", list(HistoryMode))
def test_the_largest_valid_request_fits_and_not_much_more(mode: HistoryMode) -> None:
    block, batching = 16, BatchingConfig(max_request_positions=1000, max_request_candidates=5000)
    settings = ServeConfig(teacher=Path("unused"), batching=batching).of_teacher(block)
    rows = 1000
    length = block - 1 if mode is HistoryMode.WINDOW else 1
    query = ScoreQuery(
        mode,
        np.zeros(rows * length, np.int32),
        np.full(rows, length, np.int32),
        np.zeros(5000, np.int32),
        np.full(rows, 5, np.int32),
        window=block - 1 if mode is HistoryMode.SEQUENCE else 0,
        include_candidate_mass=True,
    )
    size = wire.encode_query(query, 2**64 - 1).ByteSize()
    assert size <= settings.max_message_bytes
    if mode is HistoryMode.WINDOW:
        assert settings.max_message_bytes - size <= 1024
    assert ServeConfig(teacher=Path("unused"), max_message_bytes=2048).of_teacher(block).max_message_bytes == 2048


@pytest.mark.parametrize(
    ("open_files", "wanted", "allowed", "raised"),
    [
        ((1024, 4096), 256, 256, None),
        ((256, 4096), 256, 256, 256 + 8 + limits.RESERVED_FILES),
        ((64, 64), 256, 64 - 8 - limits.RESERVED_FILES, None),
        ((64, 128), 256, 128 - 8 - limits.RESERVED_FILES, 128),
        ((resource.RLIM_INFINITY,) * 2, 256, 256, None),
        ((64, resource.RLIM_INFINITY), 256, 256, 256 + 8 + limits.RESERVED_FILES),
    ],
)
def test_connections_follow_the_limit_of_open_files(
    open_files: tuple[int, int], wanted: int, allowed: int, raised: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets: list[tuple[int, int]] = []
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: open_files)
    monkeypatch.setattr(limits.resource, "setrlimit", lambda _, pair: sets.append(pair))
    assert limits.allowed_connections(wanted, 8) == allowed
    changed = [pair for pair in sets if pair != open_files]
    assert changed == ([] if raised is None else [(raised, open_files[1])])


def test_too_few_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (40, 40))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda *_: None)
    with pytest.raises(ConfigError, match="ulimit -n"):
        limits.allowed_connections(256, 8)


def test_grpc_logs_little() -> None:
    now = [0.0]
    few = limits.FewRecords(lambda: now[0])

    def shown(name: str) -> str | None:
        record = logging.LogRecord(name, logging.ERROR, "", 0, "bad %s", ("bytes",), None)
        return record.getMessage() if few.filter(record) else None

    assert [shown("grpc._cython.cygrpc") for _ in range(1000)].count("bad bytes") == limits.LOG_RECORDS
    assert shown("teacher_server.serve.service") == "bad bytes"
    now[0] += limits.LOG_SECONDS
    assert shown("asyncio") == f"bad bytes ({1000 - limits.LOG_RECORDS} records before it were dropped)"
    assert shown("grpc") == "bad bytes"
