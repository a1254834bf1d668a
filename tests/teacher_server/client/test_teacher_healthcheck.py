"""The probe's exit code follows the server's own health service."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from teacher_server.address import Address
from teacher_server.client import healthcheck
from teacher_server.serve.exposition import Exposition
from teacher_server.serve.lifecycle import Lifecycle, State


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_serving_is_healthy(servicer: health.HealthServicer, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)

    assert healthcheck.main([address]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_draining_is_not(servicer: health.HealthServicer, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    assert healthcheck.main([address]) == 1
    assert capsys.readouterr().out == "NOT_SERVING\n"


def test_nothing_listening_is_not() -> None:
    assert healthcheck.status("unix:/nonexistent.sock", timeout=0.2) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.fixture
def metrics() -> Iterator[tuple[str, Lifecycle]]:
    """A daemon's metrics port, and the state that it tells."""
    started: queue.Queue[tuple[Exposition, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    lifecycle = Lifecycle()

    async def serve() -> None:
        exposition = Exposition(Address.parse("127.0.0.1:0"), CollectorRegistry(), lifecycle)
        exposition.start()
        ended = asyncio.Event()
        started.put((exposition, asyncio.get_running_loop(), ended))
        await ended.wait()
        await exposition.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    exposition, loop, ended = started.get()
    yield f"http://{exposition.address}", lifecycle
    loop.call_soon_threadsafe(ended.set)
    thread.join()


def test_the_metrics_port_says_the_same(
    metrics: tuple[str, Lifecycle], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a probe never leaves the machine
    address, lifecycle = metrics
    for state, code, said in (
        (State.LOADING, 1, "NOT_SERVING (loading)"),
        (State.SERVING, 0, "SERVING"),
        (State.DRAINING, 1, "NOT_SERVING (draining)"),
    ):
        lifecycle._state = state
        assert healthcheck.main([address]) == code
        assert capsys.readouterr().out == f"{said}\n"


def test_no_metrics_port_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        assert healthcheck.main([f"http://127.0.0.1:{free.getsockname()[1]}"]) == 1
    assert capsys.readouterr().out.startswith("UNAVAILABLE (")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["http://127.0.0.1"], "expected http://HOST:PORT of the metrics"),
        (["http://127.0.0.1:99999"], "Port out of range"),
        (["http://127.0.0.1:1/readyz"], "expected http://HOST:PORT of the metrics"),
        (["http://127.0.0.1:1", "--ca", "x", "--server-name", "y"], "leave out --ca, --server-name"),
        (["127.0.0.1:1", "--key", "x"], "certificate and key go together"),
        (["127.0.0.1:1", "--ca", "/nonexistent"], "/nonexistent"),
    ],
)
def test_what_cannot_be_asked_is_said_without_a_traceback(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        healthcheck.main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
