"""Metrics and probes over HTTP: /metrics, /healthz and /readyz, on the daemon's own event loop.

One request a connection, few connections, a time limit for each: whoever does not read or write in time is cut off, and
who came first goes first when others want in.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import http
import logging
import socket
import urllib.parse
from collections.abc import Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from shared.errors import ConfigError
from teacher_server.address import Address, check_free
from teacher_server.serve.lifecycle import Lifecycle

log = logging.getLogger(__name__)

CONNECTIONS = 8
"""At once; scrapers and probes need one each, for milliseconds."""
HEAD_BYTES = 8192
"""The longest request."""
SECONDS = 5.0
"""How long a request may take to come, and its answer to be taken."""
LEAST_SECONDS = 0.1
"""How long a connection is safe from those that come after it."""
PAUSE_SECONDS = 0.1
"""After a connection could not be accepted."""
TEXT = "text/plain; charset=utf-8"


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is answered; the body's length and the end of the connection are told as well."""

    status: http.HTTPStatus
    body: bytes
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"Content-Type": TEXT})

    def encode(self, has_body: bool = True) -> bytes:
        """As HTTP/1.1 has it; HEAD is answered without the body."""
        headers = {**self.headers, "Content-Length": str(len(self.body)), "Connection": "close"}
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body if has_body else b"")


class Exposition:
    """The HTTP server. `start` it on the loop that shall serve."""

    def __init__(self, address: Address, registry: CollectorRegistry, lifecycle: Lifecycle) -> None:
        """Binds the address; connections wait until the start.

        Raises:
            ConfigError: the address is taken, not of this machine or not permitted.
        """
        check_free(address)
        self._registry, self._lifecycle = registry, lifecycle
        self._socket = _listen(address)
        self._connections: dict[asyncio.Task[None], float] = {}
        """Being served, and since when, oldest first."""
        self._rendering = asyncio.Lock()
        self._accepting: asyncio.Task[None] | None = None
        self.address = address.with_port(self._socket.getsockname()[1])

    def start(self) -> None:
        """Serves from now on."""
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Stops serving and frees the port."""
        tasks = [*self._connections, *([] if self._accepting is None else [self._accepting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError as error:  # out of file descriptors, or the caller has gone again
                log.debug("cannot accept a connection for metrics: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            connection.setblocking(False)
            task = asyncio.create_task(self._serve(connection))
            self._connections[task] = loop.time()
            task.add_done_callback(self._connections.pop)
            await self._make_room()

    async def _make_room(self) -> None:
        """For one more connection, before it is accepted; new ones wait in the system's queue meanwhile."""
        loop = asyncio.get_running_loop()
        while len(self._connections) >= CONNECTIONS:
            oldest, since = next(iter(self._connections.items()))
            await asyncio.wait([oldest], timeout=max(0.0, since + LEAST_SECONDS - loop.time()))
            oldest.cancel()
            await asyncio.wait([oldest])

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection, contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(SECONDS):
                try:
                    request = parse(await _read_head(connection))
                    answer, is_head = await self._answer(request), request.method == "HEAD"
                except ValueError as error:
                    answer, is_head = Answer(http.HTTPStatus.BAD_REQUEST, f"{error}\n".encode()), False
            async with asyncio.timeout(SECONDS):
                await loop.sock_sendall(connection, answer.encode(not is_head))
                connection.shutdown(socket.SHUT_WR)

    async def _answer(self, request: Request) -> Answer:
        status, state = http.HTTPStatus, self._lifecycle.state.value
        if request.method not in ("GET", "HEAD"):
            allowed = {"Content-Type": TEXT, "Allow": "GET, HEAD"}
            return Answer(status.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", allowed)
        match request.path:
            case "/metrics":
                async with self._rendering:
                    return await asyncio.to_thread(self._render, request)
            case "/healthz":
                return Answer(status.OK, f"{state}\n".encode())
            case "/readyz":
                is_ready = self._lifecycle.is_serving
                return Answer(status.OK if is_ready else status.SERVICE_UNAVAILABLE, f"{state}\n".encode())
            case _:
                return Answer(status.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

    def _render(self, request: Request) -> Answer:
        """The metrics in the format and encoding that the scraper takes; `name[]` restricts them."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        headers = {"Content-Type": content_type}
        names = urllib.parse.parse_qs(request.query).get("name[]")
        body = encode(self._registry.restricted_registry(names) if names else self._registry)
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body)
        return Answer(http.HTTPStatus.OK, body, headers)


def parse(head: bytes) -> Request:
    """Reads a request's line and headers; raises `ValueError` if they are none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        path = urllib.parse.urlsplit(target)
    except ValueError:
        raise ValueError("not a request of HTTP/1") from None
    if not version.startswith("HTTP/1."):
        raise ValueError("not a request of HTTP/1")
    return Request(method, path.path, path.query, headers)


async def _read_head(connection: socket.socket) -> bytes:
    loop, head = asyncio.get_running_loop(), b""
    while b"\r\n\r\n" not in head:
        if len(head) >= HEAD_BYTES:
            raise ValueError(f"more than {HEAD_BYTES} bytes of headers")
        received = await loop.sock_recv(connection, HEAD_BYTES - len(head))
        if not received:
            raise ConnectionResetError
        head += received
    return head.partition(b"\r\n\r\n")[0]


def _listen(address: Address) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen()
            made.setblocking(False)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise ConfigError(f"cannot serve metrics on {address}: {error}; choose another address") from None
    return made
