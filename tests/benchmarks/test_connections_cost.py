"""The benchmark of connections opens what it says, and asks meanwhile."""

from __future__ import annotations

from pathlib import Path

import grpc
import psutil
import pytest
from conftest import start_teacher

from benchmarks import connections
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc


@pytest.mark.integration
def test_connections_are_opened_counted_and_closed(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above `max_connections` are closed by the teacher; the question's own is one of them."""
    monkeypatch.setattr(connections, "QUESTIONS", 5)
    with start_teacher(tiny_teacher, "max_connections=21") as server, grpc.insecure_channel(server.address) as channel:
        stub, process = rpc.TeacherServiceStub(channel), psutil.Process(server.process.pid)
        connections._ask(stub)
        for kind, wanted, most in (("greeted", 10, 10), ("silent", 50, 20)):
            found = connections.measure(process, stub, server.address, kind, wanted, wait=0)
            assert (found.kind, found.wanted) == (kind, wanted) and 0 < found.opened <= most
            assert found.row().count("|") == connections.HEADER.splitlines()[0].count("|")


def test_what_begins_tls_is_a_client_hello() -> None:
    assert connections.hello()[0] == 22
