"""What callers can make the daemon hold: connections, calls, messages. docs/SECURITY.md adds it up.

gRPC reads a message whole, up to the largest that it may receive, before anybody sees its size. So who may not ask is
refused before anything is read; and of health and reflection, which anybody may ask, few messages are read at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from shared.errors import ConfigError, InvalidRequest, Overloaded, TeacherError, Unavailable
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from teacher_server.metrics import Metrics
from teacher_server.request import Request
from teacher_server.serve.config import ServeConfig

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name

CALLS_A_CONNECTION = 100
"""Calls that a connection may have open; a caller's own gRPC keeps those above it waiting."""
PENDING_CALLS = 200
"""Calls that may have arrived and not be looked at yet; gRPC refuses those above it."""
WINDOW_BYTES = 2**17
"""Of a message that nobody reads, what a caller may have sent."""
READ_BYTES = 2**16
"""What gRPC reads at once from a connection; it would become 4 MiB for whoever sends fast."""
METADATA_BYTES = 2**13
"""Of a call; above it gRPC refuses the more calls the more they have, above twice as much all."""
HANDSHAKE_SECONDS = 10.0
"""How long a connection may take until it speaks HTTP/2 (and TLS)."""

AGE_JITTER = 0.1
"""Share by which the age of connections and streams differs, so that not all callers come back at once; gRPC's own."""

PUBLIC_CALLS = 4
"""Open calls of health and reflection, a connection."""
PUBLIC_READS = 4
"""Messages of these that are read at once."""
PUBLIC_BYTES = 2**12
"""The largest that makes sense."""
PUBLIC_SECONDS = 1.0
"""How long reading one may take."""
PUBLIC_SECONDS_BUSY = 0.1
"""The same while others wait to be read."""

RESERVED_FILES = 32
"""File descriptors for other uses than connections of callers and of the metrics."""
LOG_SECONDS, LOG_RECORDS = 60.0, 10
"""gRPC may log so many records in so many seconds."""

Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[None]]


def options(settings: ServeConfig, connections: int, message_bytes: int) -> list[tuple[str, int]]:
    """gRPC's options of a server that takes so many connections, and messages of at most this size."""
    return [
        *_age(settings),
        ("grpc.so_reuseport", 0),  # a second daemon on the port must fail, not take half of the calls
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.http.tarpit", 0),  # refused calls would be held for a while, to slow their callers
        ("grpc.experimental.tcp_max_read_buffer_size", READ_BYTES),
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_SECONDS)),
        ("grpc.max_concurrent_streams", CALLS_A_CONNECTION),
        ("grpc.server.max_pending_requests", PENDING_CALLS // 2),  # from here on more and more of them are refused
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),  # an answer is smaller than its question
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: 60 KB would become 60 MB before anybody looks
        ("grpc.http2.bdp_probe", 0),  # it would widen the window below for whoever sends fast
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.keepalive_time_ms", round(1000 * settings.keepalive_seconds)),  # notice machines that have vanished
        ("grpc.keepalive_timeout_ms", round(1000 * settings.keepalive_seconds / 3)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", round(1000 * settings.keepalive_seconds / 3)),  # otherwise 60 s come first
        ("grpc.http2.max_pings_without_data", 0),  # gRPC would stop after two
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # trainers ping while their student computes
    ]


def _age(settings: ServeConfig) -> list[tuple[str, int]]:
    """When gRPC asks for a new connection (GOAWAY), and when it cuts off the calls that are still on the old one: a
    stream that was opened just before may get as old as the connection was, and then has its own grace."""
    age, grace = settings.max_connection_age_seconds, settings.max_connection_age_grace_seconds
    if not age:
        return []
    cut = age * (1 + AGE_JITTER) + grace
    return [
        ("grpc.max_connection_age_ms", max(1, round(1000 * age))),
        ("grpc.max_connection_age_grace_ms", max(1, round(1000 * cut))),
    ]


def allowed_connections(wanted: int, others: int) -> int:
    """How many connections the process's file descriptors allow, at most as many as are wanted.

    Args:
        wanted: connections of callers.
        others: descriptors that are promised to somebody else, beside `RESERVED_FILES`.

    Raises:
        ConfigError: there is no room for one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + others + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    if soft <= others + RESERVED_FILES:
        raise ConfigError(
            f"{soft} open files are too few to serve: raise the limit (ulimit -n) to {needed}, or lower max_connections"
        )
    allowed = soft - others - RESERVED_FILES
    log.warning("%d open files allow %d connections, not %d; raise the limit (ulimit -n)", soft, allowed, wanted)
    return allowed


class FewRecords(logging.Filter):
    """Of what gRPC, the event loop and the exporter of spans log, lets through some a minute: callers can cause it, or
    a collector that is away."""

    NAMES = ("grpc", "asyncio", "opentelemetry")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since = clock()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`; the first record after some were dropped says how many."""
        if record.name.partition(".")[0] not in self.NAMES:
            return True
        if self._clock() - self._since >= LOG_SECONDS:
            dropped = max(0, self._seen - LOG_RECORDS)
            self._since, self._seen = self._clock(), 0
            if dropped:
                record.msg, record.args = f"{record.getMessage()} ({dropped} records before it were dropped)", ()
        self._seen += 1
        return self._seen <= LOG_RECORDS


def refusal(error: TeacherError, metrics: Metrics, method: str) -> grpc.RpcMethodHandler:
    """Answers a call of any kind with an error, and reads nothing of it.

    Args:
        metrics: are told of it.
        method: of the call, without its service.
    """

    async def call(_: Any, context: grpc.aio.ServicerContext) -> None:
        metrics.tell(Request(method, str(context.peer()), error.status))
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(call)


async def abort(context: grpc.aio.ServicerContext, error: TeacherError) -> None:
    """Ends a call with an error's status."""
    await context.abort(grpc.StatusCode[error.status], str(error))


class PublicInterceptor(grpc.aio.ServerInterceptor):
    """Around the calls of all services but the teacher's own, which need no token."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._calls: Counter[str] = Counter()
        self._seats = asyncio.Semaphore(PUBLIC_READS)
        self._waiting = 0
        self._reads: dict[asyncio.Timeout, float] = {}
        """Under way, and when they began."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)  # None for a method that nobody serves
        if handler is None or service_of(handler_call_details) == SERVICE:
            return cast(grpc.RpcMethodHandler, handler)
        return grpc.stream_stream_rpc_method_handler(
            self._guarded(handler), response_serializer=handler.response_serializer
        )

    def _guarded(self, handler: Any) -> Handler:
        async def call(_: Any, context: grpc.aio.ServicerContext) -> None:
            try:
                with self._counted(context.peer()):
                    await self._answer(handler, context)
                return
            except TeacherError as error:
                refused = error.with_traceback(None)
            await abort(context, refused)

        return call

    async def _answer(self, handler: Any, context: grpc.aio.ServicerContext) -> None:
        parse = handler.request_deserializer
        if handler.request_streaming:
            answers = handler.stream_stream(self._messages(parse, context), context)
        else:
            request = await self._read(parse, context)
            if request is None:
                raise InvalidRequest("the call has no message")
            if not handler.response_streaming:
                await context.write(await handler.unary_unary(request, context))
                return
            answers = handler.unary_stream(request, context)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                await context.write(answer)

    @contextlib.contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """Around an open call; all that come over a Unix-domain socket look like one connection."""
        most = PUBLIC_CALLS * (self._connections if peer.startswith("unix") else 1)
        if self._calls[peer] >= most:
            raise Overloaded(f"at most {most} calls of health and reflection may be open on a connection")
        self._calls[peer] += 1
        try:
            yield
        finally:
            self._calls[peer] -= 1
            if not self._calls[peer]:
                del self._calls[peer]

    async def _messages(self, parse: Callable[[bytes], Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Of a stream, until it ends or is silent."""
        with contextlib.suppress(Unavailable):
            while (message := await self._read(parse, context)) is not None:
                yield message

    async def _read(self, parse: Callable[[bytes], Any], context: grpc.aio.ServicerContext) -> Any:
        """The next message; None if there is none.

        Raises:
            InvalidRequest: it is too large, or not of this kind.
            Unavailable: it did not come in time.
        """
        data = await self._read_bytes(context)
        if data is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs lack it
            return None
        if len(data) > PUBLIC_BYTES:
            raise InvalidRequest(f"a message of {len(data)} bytes; at most {PUBLIC_BYTES} are read here")
        try:
            return parse(data)
        except DecodeError:
            raise InvalidRequest(f"{len(data)} bytes that are not a message of this method") from None

    async def _read_bytes(self, context: grpc.aio.ServicerContext) -> Any:
        """A seat holds as much as the largest message, so nobody may sit on one while others wait."""
        if self._seats.locked():
            for read, began in self._reads.items():
                if not read.expired():
                    read.reschedule(began + PUBLIC_SECONDS_BUSY)
        self._waiting += 1
        try:
            await self._seats.acquire()
        finally:
            self._waiting -= 1
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + (PUBLIC_SECONDS_BUSY if self._waiting else PUBLIC_SECONDS)) as read:
                self._reads[read] = began
                return await context.read()
        except TimeoutError:
            raise Unavailable("the message did not come in time") from None
        finally:
            self._reads.pop(read, None)
            self._seats.release()


def service_of(details: grpc.HandlerCallDetails) -> str:
    """The full name of the service that a call is for."""
    return str(details.method).strip("/").partition("/")[0]


def method_of(details: grpc.HandlerCallDetails) -> str:
    """The name of the method that a call is for, without its service."""
    return str(details.method).rpartition("/")[2]
