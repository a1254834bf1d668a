"""The probe's exit code follows the server's own health service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from teacher_server.client import healthcheck


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
