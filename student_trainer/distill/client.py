"""The teacher over gRPC: its own thread and event loop, bounded, retried, in order of asking.

    submit (any thread) -> loop thread: semaphore -> attempt on a transport -> retry with backoff -> Future

A transport makes one attempt; whether to try again, when and where is decided in one
place (`_answer`). Transports: `UnaryTransport`, a call a request, and `StreamTransport`,
one bidirectional stream whose loss fails the attempts on it, never the requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
import time
from concurrent.futures import Future
from typing import Protocol

import grpc

from shared.errors import (
    CompatibilityError,
    DeadlineExceeded,
    InvalidRequest,
    TeacherError,
    Unavailable,
    from_code,
    from_status,
)
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo, decode_info, decode_reply, encode_query
from student_trainer.distill.config import ClientConfig

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
MESSAGE_BYTES = 512 * 2**20
"""Largest answer accepted; what may be sent is the server's to decide."""
ENVELOPE_BYTES = 16
"""What a stream's message adds to a request."""
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
)


class Transport(Protocol):
    """One attempt at one request."""

    async def score(self, request: pb.ScoreRequest, timeout: float) -> pb.ScoreResponse:
        """The answer; raises a `TeacherError`."""
        ...


class UnaryTransport:
    """A call a request."""

    def __init__(self, stub: rpc.TeacherServiceStub) -> None:
        self._stub = stub

    async def score(self, request: pb.ScoreRequest, timeout: float) -> pb.ScoreResponse:
        """See `Transport`."""
        try:
            response: pb.ScoreResponse = await self._stub.Score(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error) from None
        return response


class StreamTransport:
    """One bidirectional stream, opened when needed and again after it broke."""

    def __init__(self, stub: rpc.TeacherServiceStub) -> None:
        self._stub = stub
        self._call: grpc.aio.StreamStreamCall | None = None
        self._waiting: dict[int, asyncio.Future[pb.ScoreResponse]] = {}
        self._writing = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    async def score(self, request: pb.ScoreRequest, timeout: float) -> pb.ScoreResponse:
        """See `Transport`."""
        answer: asyncio.Future[pb.ScoreResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = answer
        try:
            async with asyncio.timeout(timeout):
                await self._write(request)
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from None
        finally:
            self._waiting.pop(request.request_id, None)

    async def _write(self, request: pb.ScoreRequest) -> None:
        async with self._writing:
            if self._call is None:
                self._call = self._stub.StreamScore()
                self._reader = asyncio.create_task(self._read(self._call))
            try:
                await self._call.write(pb.StreamScoreRequest(request=request))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the stream has ended; its reader says why to every waiter
            except asyncio.CancelledError:
                self._call.cancel()  # half a message may be on the wire; the reader fails the other waiters
                raise

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        failure: TeacherError = Unavailable("the teacher ended the stream")
        try:
            async for message in call:
                answer = self._waiting.get(message.request_id)
                if answer is None or answer.done():
                    continue  # its attempt has timed out
                if message.WhichOneof("result") == "response":
                    answer.set_result(message.response)
                else:
                    answer.set_exception(from_code(message.error.code, message.error.message))
        except grpc.aio.AioRpcError as error:
            failure = _from_rpc(error)
        finally:
            if self._call is call:
                self._call = None
                for answer in self._waiting.values():
                    if not answer.done():
                        answer.set_exception(failure)


class GrpcTeacher:
    """A teacher behind one or more addresses that serve the same weights.

    Requests go to the addresses in turn; an attempt that fails is repeated at the next
    one after a pause that grows from 0.1 s to 10 s, with jitter. All answers must carry
    the weights revision seen at the start.
    """

    def __init__(self, addresses: str, config: ClientConfig) -> None:
        """Waits for every address to answer, at most `connect_seconds`.

        Raises:
            Unavailable: an address did not answer in time.
            CompatibilityError: the addresses serve different weights.
        """
        self._addresses = [address.strip() for address in addresses.split(",") if address.strip()]
        self._config = config
        self._ids = itertools.count(1)
        self._open: set[Future[ScoreReply]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-client", daemon=True)
        self._thread.start()
        try:
            self.info: TeacherInfo = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`; may be called from any thread."""
        future = asyncio.run_coroutine_threadsafe(self._answer(query, next(self._ids)), self._loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def close(self) -> None:
        """See `Teacher`."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self) -> TeacherInfo:
        self._in_flight = asyncio.Semaphore(self._config.max_in_flight)
        self._channels = [grpc.aio.insecure_channel(a, options=OPTIONS) for a in self._addresses]
        self._stubs = [rpc.TeacherServiceStub(channel) for channel in self._channels]
        transport = StreamTransport if self._config.transport == "stream" else UnaryTransport
        self._transports: list[Transport] = [transport(stub) for stub in self._stubs]
        deadline = time.monotonic() + self._config.connect_seconds
        infos = [await self._get_info(i, deadline) for i in range(len(self._stubs))]
        for address, info in zip(self._addresses, infos, strict=True):
            if info.weights_revision != infos[0].weights_revision:
                raise CompatibilityError(
                    f"the teachers differ: {self._addresses[0]} serves weights {infos[0].weights_revision}, "
                    f"{address} serves {info.weights_revision}; all addresses must serve the same teacher file"
                )
        return infos[0]

    async def _get_info(self, index: int, deadline: float) -> TeacherInfo:
        address, announced = self._addresses[index], False
        for pause in _pauses():
            try:
                return decode_info(await self._stubs[index].GetTeacher(pb.GetTeacherRequest(), timeout=5))
            except grpc.aio.AioRpcError as error:
                failure = _from_rpc(error)
            remaining = deadline - time.monotonic()
            if not failure.retryable or remaining <= 0:
                raise Unavailable(
                    f"no teacher at {address} within {self._config.connect_seconds:g} s ({failure}); start one: "
                    f"`teacher-server serve --teacher FILE --listen {address}`, or raise client.connect_seconds"
                )
            if not announced:
                log.info("waiting up to %.0f s for the teacher at %s", self._config.connect_seconds, address)
                announced = True
            await asyncio.sleep(min(pause, remaining, 1.0))
        raise AssertionError("pauses never end")

    async def _answer(self, query: ScoreQuery, request_id: int) -> ScoreReply:
        request = encode_query(query, request_id)
        self._check_size(request)
        async with self._in_flight:
            give_up = time.monotonic() + self._config.retry_seconds
            for attempt, pause in enumerate(_pauses()):
                place = (request_id + attempt) % len(self._transports)
                try:
                    response = await self._transports[place].score(request, self._config.deadline_seconds)
                    return self._check(decode_reply(response, query), self._addresses[place])
                except TeacherError as error:
                    if not error.retryable or time.monotonic() + pause > give_up:
                        raise type(error)(
                            f"teacher at {self._addresses[place]}: {error} (attempt {attempt + 1})"
                        ) from None
                    level = logging.DEBUG if attempt == 0 else logging.WARNING
                    log.log(level, "teacher at %s: %s; again in %.1f s", self._addresses[place], error, pause)
                await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    def _check_size(self, request: pb.ScoreRequest) -> None:
        size, limit = request.ByteSize() + ENVELOPE_BYTES, self.info.limits.max_message_bytes
        if size > limit:  # gRPC would answer as if the teacher were busy, and end the stream
            raise InvalidRequest(
                f"a request of {size} bytes is above the teacher's limit of {limit}; "
                "lower optim.batch_size, or serve with a larger max_message_bytes"
            )

    def _check(self, reply: ScoreReply, address: str) -> ScoreReply:
        if reply.weights_revision != self.info.weights_revision:
            raise CompatibilityError(
                f"the teacher at {address} changed its weights from {self.info.weights_revision} to "
                f"{reply.weights_revision} during the run; serve the old file again and resume"
            )
        return reply

    async def _shut(self) -> None:
        for future in list(self._open):
            future.cancel()
        await asyncio.gather(*(channel.close() for channel in getattr(self, "_channels", [])))
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pauses() -> itertools.chain[float]:
    """Pauses before the next attempts, seconds: doubling, capped, drawn from their upper half."""
    grown = (min(FIRST_PAUSE_SECONDS * 2**i, LONGEST_PAUSE_SECONDS) for i in itertools.count())
    return itertools.chain(pause * random.uniform(0.5, 1) for pause in grown)


def _from_rpc(error: grpc.aio.AioRpcError) -> TeacherError:
    return from_status(error.code().name, error.details() or "no details")
