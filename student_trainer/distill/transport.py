"""One attempt at one request: a call of its own, or a message on a stream whose sends keep to the teacher's credits."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from shared.errors import Corrupted, DeadlineExceeded, TeacherError, Unavailable, from_code, from_status
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.tracing import traceparent

Metadata = Callable[[], Sequence[tuple[str, str]]]
"""Asked for at each call: a token in it may change."""


class Transport(Protocol):
    """One attempt at one request."""

    in_flight: int
    """Positions under way or waiting to be sent."""

    async def score(self, request: pb.ScoreRequest, positions: int, timeout: float) -> pb.ScoreResponse:
        """The answer to a request of so many positions; raises a `TeacherError`.

        The timeout, seconds, runs from the moment when the request may be sent.
        """
        ...


class UnaryTransport:
    """A call a request."""

    def __init__(self, stub: rpc.TeacherServiceStub, metadata: Metadata) -> None:
        self.in_flight = 0
        self._stub = stub
        self._metadata = metadata

    async def score(self, request: pb.ScoreRequest, positions: int, timeout: float) -> pb.ScoreResponse:
        """See `Transport`."""
        self.in_flight += positions
        try:
            response: pb.ScoreResponse | None = await self._stub.Score(
                request, timeout=timeout, metadata=tuple(_traced(self._metadata()))
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        finally:
            self.in_flight -= positions
        if response is None:
            raise unreadable()
        return response


class StreamTransport:
    """One bidirectional stream, opened when needed and again after it broke."""

    def __init__(self, stub: rpc.TeacherServiceStub, metadata: Metadata) -> None:
        self.in_flight = 0
        self._stub = stub
        self._metadata = metadata
        self._stream: _Stream | None = None
        self._left: set[_Stream] = set()

    async def score(self, request: pb.ScoreRequest, positions: int, timeout: float) -> pb.ScoreResponse:
        """See `Transport`."""
        self.in_flight += positions
        try:
            while True:
                try:
                    return await self._open().ask(request, max(1, positions), timeout)
                except _Left:
                    pass  # it was not sent: the next stream takes it
        finally:
            self.in_flight -= positions

    def _open(self) -> _Stream:
        """The stream for what is sent now; one that is left lives on until its last answer has come."""
        self._left = {stream for stream in self._left if not stream.has_ended}
        stream = self._stream
        if stream is None or stream.has_ended or stream.is_left:
            if stream is not None and not stream.has_ended:
                self._left.add(stream)
            self._stream = stream = _Stream(self._stub.StreamScore(metadata=tuple(self._metadata())))
        return stream


class _Left(Exception):
    """The teacher wants the stream closed before this request was sent on it."""


class _Stream:
    """One call of StreamScore, from its opening to its end."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.has_ended = False
        self.is_left = False
        """Nothing more is sent on it, and it is closed when its last answer has come."""
        self._closing: asyncio.Task[None] | None = None
        self._call = call
        self._balance = 0
        self._sent = 0
        self._received = 0
        self._line: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()
        self._waiting: dict[int, asyncio.Future[pb.ScoreResponse]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    async def ask(self, request: pb.ScoreRequest, cost: int, timeout: float) -> pb.ScoreResponse:
        """Waits for credit, sends, and waits for the answer."""
        await self._turn(cost)
        if self.has_ended:
            raise Unavailable("the teacher ended the stream")
        answer: asyncio.Future[pb.ScoreResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = answer
        received = self._received
        try:
            async with asyncio.timeout(timeout):
                await self._write(request)
                return await answer
        except TimeoutError:
            if self._received == received:
                self._call.cancel()  # nothing comes any more: whoever waits on this stream goes elsewhere
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from None
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # who is cancelled before the answer reaches them has seen it, too
            del self._waiting[request.request_id]
            self._sent -= 1
            self._pump()
            self._close_if_left()

    async def _turn(self, cost: int) -> None:
        """Returns when a request of this cost may be sent, in the order of asking; it then counts as sent."""
        if self.has_ended:
            raise Unavailable("the teacher ended the stream")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((cost, turn))
        self._pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # its turn came all the same
                self._balance += cost
                self._sent -= 1
            self._pump()
            raise

    def _pump(self) -> None:
        while self._line:
            cost, turn = self._line[0]
            if not turn.done():
                if self._sent and self._balance < cost:
                    return
                self._balance -= cost
                self._sent += 1
                turn.set_result(None)
            self._line.popleft()

    def _leave(self) -> None:
        """The teacher wants to end the stream: what waits to be sent goes elsewhere."""
        self.is_left = True
        for _, turn in self._line:
            if not turn.done():
                turn.set_exception(_Left())
        self._line.clear()
        self._close_if_left()

    def _close_if_left(self) -> None:
        if self.is_left and not self._sent and self._closing is None:
            self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        async with self._writing:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it has ended by itself
                await self._call.done_writing()

    async def _write(self, request: pb.ScoreRequest) -> None:
        async with self._writing:
            if self.has_ended:
                return  # its waiter knows why
            try:
                await self._call.write(pb.StreamScoreRequest(request=request, traceparent=traceparent()))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the stream has ended; its reader says why to every waiter
            except asyncio.CancelledError:
                self._call.cancel()  # half a message may be on the wire; the reader fails the other waiters
                raise

    async def _read(self) -> None:
        failure: TeacherError = Unavailable("the teacher ended the stream")
        try:
            async for message in self._call:
                self._take(message)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error)
        except Corrupted as error:
            failure = error
            self._call.cancel()
        except asyncio.CancelledError:
            failure = Unavailable("the stream was given up")
            if not self._call.cancelled():
                raise
        finally:
            self.has_ended = True
            waiters: list[asyncio.Future[Any]] = [*(turn for _, turn in self._line), *self._waiting.values()]
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(failure)

    def _take(self, message: pb.StreamScoreResponse | None) -> None:
        if message is None:
            raise unreadable()
        if message.HasField("response") and message.response.request_id != message.request_id:
            raise Corrupted("an answer on the stream was damaged on its way: it has two request ids")
        if message.closing:
            self._leave()
            return
        self._received += 1
        self._balance += message.credit
        answer, result = self._waiting.get(message.request_id), message.WhichOneof("result")
        if result is not None and answer is not None and not answer.done():  # otherwise its attempt has timed out
            if result == "response":
                answer.set_result(message.response)
            else:
                answer.set_exception(from_code(message.error.code, message.error.message))
        self._pump()


def _traced(metadata: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """With the span that a call belongs to, if there is one; a stream says it with each of its requests."""
    parent = traceparent()
    return (*metadata, ("traceparent", parent)) if parent else metadata


def unreadable() -> Corrupted:
    """What it means that gRPC gives None for an answer: it could not be read."""
    return Corrupted("the answer was damaged on its way, or is of software of another version: it is no message")


def from_rpc(error: grpc.aio.AioRpcError) -> TeacherError:
    """What a failed call means."""
    return from_status(error.code().name, error.details() or "no details")
