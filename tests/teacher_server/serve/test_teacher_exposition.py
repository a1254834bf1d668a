"""Metrics and probes over HTTP: what is answered, and that slow and idle callers hold nothing for long."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http
import http.client
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import ConfigError
from teacher_server.address import Address
from teacher_server.metrics import Metrics
from teacher_server.serve import exposition
from teacher_server.serve.exposition import Exposition
from teacher_server.serve.lifecycle import Lifecycle, State


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextlib.asynccontextmanager
async def exposed(state: State = State.SERVING, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Exposition]:
    registry = CollectorRegistry()
    Metrics(registry).scored_positions.inc(5)
    made = Exposition(Address(host, port), registry, Lifecycle(state))
    made.start()
    try:
        yield made
    finally:
        await made.close()


def ask(made: Exposition, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request by an ordinary client."""
    connection = http.client.HTTPConnection(made.address.host, made.address.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def asked(path: str, method: str = "GET", state: State = State.SERVING, **headers: str) -> Any:
    async def go() -> tuple[int, dict[str, str], bytes]:
        async with exposed(state) as made:
            return await asyncio.to_thread(ask, made, path, method, **headers)

    return asyncio.run(go())


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_serves_and_frees_its_port(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def test() -> None:
        async with exposed(host=host) as made:
            _, _, body = await asyncio.to_thread(ask, made, "/metrics")
            families = {family.name: family for family in text_string_to_metric_families(body.decode())}
            assert families["teacher_scored_positions"].samples[0].value == 5
            with pytest.raises(ConfigError, match="it is in use"):
                async with exposed(host=host, port=made.address.port):
                    pass
        async with exposed(host=host, port=made.address.port):
            pass

    run(test)


@pytest.mark.parametrize(
    ("state", "ready"), [(State.LOADING, 503), (State.SERVING, 200), (State.DRAINING, 503), (State.STOPPED, 503)]
)
def test_probes_tell_the_state(state: State, ready: int) -> None:
    assert asked("/healthz", state=state)[::2] == (200, f"{state.value}\n".encode())
    assert asked("/readyz", state=state)[::2] == (ready, f"{state.value}\n".encode())


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "/favicon.ico"])
def test_there_is_nothing_else(path: str) -> None:
    assert asked(path)[0] == 404


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(path: str) -> None:
    get, head = asked(path), asked(path, "HEAD")
    assert (head[0], head[2]) == (get[0], b"")
    assert head[1]["Content-Type"] == get[1]["Content-Type"]
    if path != "/metrics":  # whose length changes with every scrape
        assert head[1]["Content-Length"] == get[1]["Content-Length"] == str(len(get[2]))


def test_other_methods_are_not_allowed() -> None:
    status, headers, _ = asked("/metrics", "DELETE")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_scrapers_choose_format_encoding_and_names() -> None:
    assert asked("/metrics")[1]["Content-Type"].startswith("text/plain; version=0.0.4")
    _, headers, body = asked("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    _, headers, body = asked("/metrics", Accept_Encoding="deflate, gzip;q=1")
    assert headers["Content-Encoding"] == "gzip"
    assert b"teacher_scored_positions_total 5.0" in gzip.decompress(body)
    _, _, body = asked("/metrics?name[]=teacher_scored_positions_total")
    assert [line for line in body.decode().splitlines() if line[0] != "#"] == ["teacher_scored_positions_total 5.0"]


@pytest.mark.parametrize(
    "sent", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"x" * 9000]
)
def test_what_is_no_request_is_refused(sent: bytes) -> None:
    async def test() -> None:
        async with exposed() as made:
            reader, writer = await asyncio.open_connection(made.address.host, made.address.port)
            writer.write(sent)
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    run(test)


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"])
def test_who_does_not_write_or_read_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one asks well and does not read; its answer is larger than what the system takes in for it."""
    monkeypatch.setattr(exposition, "SECONDS", 0.3)
    monkeypatch.setattr(Exposition, "_render", lambda *_: exposition.Answer(http.HTTPStatus.OK, bytes(2**26)))

    async def test() -> None:
        async with exposed() as made:
            with socket.create_connection((made.address.host, made.address.port)) as caller:
                await asyncio.to_thread(caller.sendall, sent)
                while not made._connections:
                    await asyncio.sleep(0.01)
                while made._connections:
                    await asyncio.sleep(0.01)

    run(test)


def test_few_connections_are_open_and_the_newest_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones do not keep scrapers out, whose turn comes: the oldest make way."""
    monkeypatch.setattr(exposition, "SECONDS", 600.0)
    monkeypatch.setattr(exposition, "LEAST_SECONDS", 0.01)

    async def test() -> None:
        async with exposed() as made:
            most = 0
            with contextlib.ExitStack() as idle:
                for _ in range(5 * exposition.CONNECTIONS):
                    idle.enter_context(socket.create_connection((made.address.host, made.address.port)))
                    await asyncio.sleep(0)
                    most = max(most, len(made._connections))
                status, _, _ = await asyncio.to_thread(ask, made, "/readyz")
                assert status == 200
                assert most <= exposition.CONNECTIONS
                assert 0 < len(made._connections) < exposition.CONNECTIONS

    run(test)
