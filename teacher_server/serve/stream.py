"""One call of StreamScore: its requests side by side, their answers as they become ready, and credits beside them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import grpc

from shared.errors import Cancelled, InvalidRequest, Unavailable
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from teacher_server.metrics import Metrics
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.credits import Account, CreditPool
from teacher_server.serve.interceptors import as_teacher_error
from teacher_server.serve.limits import AGE_JITTER

READS_ON = 0.5
"""Share of its grace in which an old stream is still read; the rest is for the answers."""
POSITION_BYTES = 4
"""Of `candidate_lengths`, int32."""

Score = Callable[[pb.StreamScoreRequest, bool], Awaitable[pb.ScoreResponse]]
"""Scores a request of a stream; whether its positions were granted."""


class Stream:
    """One call of StreamScore: a task a request, answers in the order in which they become ready."""

    def __init__(
        self,
        score: Score,
        settings: ServeConfig,
        metrics: Metrics,
        context: grpc.aio.ServicerContext,
        credits: CreditPool,
        account: Account,
    ) -> None:
        self._score = score
        self._metrics = metrics
        self._context = context
        self._peer = str(context.peer())
        self._credits = credits
        self._account = account
        self._slots = asyncio.Semaphore(settings.stream_in_flight)
        self._age_seconds = settings.max_connection_age_seconds * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - jitter
        self._reads_on_seconds = READS_ON * settings.max_connection_age_grace_seconds
        self._is_too_old = False
        self._most_bytes = settings.max_message_bytes
        self._bytes = 0
        """Of the requests under way."""
        self._lighter = asyncio.Event()
        self._writing = asyncio.Lock()
        self._ids: set[int] = set()

    async def run(self, requests: AsyncIterator[pb.StreamScoreRequest], reads: set[asyncio.Timeout]) -> None:
        """Reads until the caller is done or the read, put in `reads`, times out; returns when all is answered.

        Raises:
            InvalidRequest: what came was no message; the requests before it are answered.
            Unavailable: the caller was told to move to another stream and did not; likewise.
        """
        refusal: InvalidRequest | None = None
        ageing: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as answers:
            try:
                async with asyncio.timeout(None) as read:
                    reads.add(read)
                    if self._age_seconds:
                        ageing = asyncio.create_task(self._age(read))
                    await self._slots.acquire()
                    async for message in requests:
                        granted = self._account.spend(_positions(message.request))
                        self._bytes += message.request.ByteSize()
                        answers.create_task(self._answer(message, granted))
                        del message
                        await self._slots.acquire()
                        while self._bytes > self._most_bytes:
                            self._lighter.clear()
                            await self._lighter.wait()
            except TimeoutError:
                pass  # the teacher is draining, or the stream too old
            except InvalidRequest as error:
                refusal = error
            finally:
                reads.discard(read)
                if ageing is not None:
                    ageing.cancel()
        if refusal is not None:
            raise refusal
        if self._is_too_old:
            raise Unavailable("the stream is older than this teacher allows; open another")

    async def _age(self, read: asyncio.Timeout) -> None:
        """Asks the caller to move when the stream is old, and later reads no more of it."""
        await asyncio.sleep(self._age_seconds)
        async with self._writing:
            with contextlib.suppress(grpc.aio.InternalError):  # it has gone
                await self._context.write(pb.StreamScoreResponse(closing=True))
        await asyncio.sleep(self._reads_on_seconds)
        self._is_too_old = True
        read.reschedule(asyncio.get_running_loop().time())

    async def _answer(self, message: pb.StreamScoreRequest, granted: bool) -> None:
        request = message.request
        answer = pb.StreamScoreResponse(request_id=request.request_id)
        try:
            with self._metrics.request("StreamScore", self._peer), self._reserve(request.request_id):
                answer.response.CopyFrom(await self._score(message, granted))
        except Exception as error:
            refusal = as_teacher_error(error)
            answer.error.CopyFrom(pb.StreamError(code=refusal.code, message=str(refusal)))
        answer.credit = self._credits.answer(self._account, _positions(request), granted)
        async with self._writing:  # one write at a time is gRPC's rule
            try:
                await self._context.write(answer)
            except grpc.aio.InternalError:  # gRPC fails the write before it cancels the call
                raise Cancelled("the caller has gone") from None
        self._bytes -= request.ByteSize()
        self._lighter.set()
        self._slots.release()

    @contextlib.contextmanager
    def _reserve(self, request_id: int) -> Iterator[None]:
        if request_id in self._ids:
            raise InvalidRequest(f"request_id: {request_id} is in flight on this stream already")
        self._ids.add(request_id)
        try:
            yield
        finally:
            self._ids.discard(request_id)


def _positions(request: pb.ScoreRequest) -> int:
    """What a request spends, whether it is valid or not: its positions, one if it has none."""
    return max(1, len(request.candidate_lengths) // POSITION_BYTES)
