"""The teacher service: message -> decode -> check -> batcher -> encode -> message; on a stream, credits beside it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic

import grpc

import shared
from shared import wire
from shared.errors import Cancelled, InvalidRequest, Unavailable
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import Limits, ScoreReply, TeacherInfo
from teacher_server.batching.batcher import Batcher
from teacher_server.metrics import Metrics
from teacher_server.scorer import ReadyT, Scorer
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.credits import Account, CreditPool
from teacher_server.serve.interceptors import as_teacher_error

CALLER_KEY = "teacher-client"
CALLER_NAME = re.compile(r"[ -~]{1,64}")

POSITION_BYTES = 4
"""Of `candidate_lengths`, int32."""

Score = Callable[[pb.ScoreRequest, bool], Awaitable[pb.ScoreResponse]]
"""Scores a request of a stream; whether its positions were granted."""


@dataclasses.dataclass(frozen=True)
class _Served(Generic[ReadyT]):
    scorer: Scorer[ReadyT]
    batcher: Batcher[ReadyT]
    description: pb.GetTeacherResponse


class TeacherService(rpc.TeacherServiceServicer, Generic[ReadyT]):
    """The methods of `teacher.v1.TeacherService`; errors become statuses in `interceptors`.

    Until `open` is called it answers that the teacher is loading.
    """

    def __init__(self, settings: ServeConfig, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served: _Served[ReadyT] | None = None
        self._is_draining = False
        self._credits = CreditPool(settings.batching.max_queued_positions)
        metrics.credit_outstanding.set_function(lambda: self._credits.outstanding)
        self._streams: set[asyncio.Task[None]] = set()
        metrics.open_streams.set_function(lambda: len(self._streams))
        self._reads: set[asyncio.Timeout] = set()

    def open(self, scorer: Scorer[ReadyT], batcher: Batcher[ReadyT]) -> None:
        """Serves a loaded teacher from now on."""
        self._served = _Served(scorer, batcher, wire.encode_info(describe(scorer, self._settings)))

    async def drain(self) -> None:
        """Reads nothing more from the streams, and returns when all that was accepted is answered and sent."""
        self._is_draining = True
        now = asyncio.get_running_loop().time()
        for read in self._reads:
            read.reschedule(now)
        if self._served is not None:
            await self._served.batcher.close()
        if self._streams:
            await asyncio.wait(self._streams)

    @property
    def unanswered(self) -> int:
        """Requests accepted and not yet answered."""
        return 0 if self._served is None else self._served.batcher.unanswered

    async def GetTeacher(  # noqa: N802 - named by the contract
        self, request: pb.GetTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTeacherResponse:
        """What is served."""
        return self._teacher().description

    async def Score(  # noqa: N802
        self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> pb.ScoreResponse:
        """Scores one request."""
        return await self._score(request, context, caller_of(context))

    async def StreamScore(  # noqa: N802
        self, requests: AsyncIterator[pb.StreamScoreRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Scores the requests of a stream, many at once; an answer is sent when it is ready.

        A stream whose caller leaves is cancelled by gRPC, and with it all of its requests.
        """
        self._refuse_if_draining()
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        caller = caller_of(context)

        async def score(request: pb.ScoreRequest, granted: bool) -> pb.ScoreResponse:
            return await self._score(request, context, caller, granted)

        account = self._credits.open()
        stream = _Stream(score, self._settings, self._metrics, context, self._credits, account)
        try:
            await stream.run(requests, self._reads)
        finally:
            self._credits.close(account)
        self._refuse_if_draining()

    def _refuse_if_draining(self) -> None:
        if self._is_draining:
            raise Unavailable("the teacher is stopping")

    def _teacher(self) -> _Served[ReadyT]:
        if self._served is None:
            self._metrics.rejected.labels("loading").inc()
            raise Unavailable("the teacher is loading")
        return self._served

    async def _score(
        self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext, caller: str, granted: bool = False
    ) -> pb.ScoreResponse:
        served = self._teacher()
        query = wire.decode_query(request)
        batching = self._settings.batching
        served.scorer.check(query, batching.max_request_positions, batching.max_request_candidates)
        remaining = context.time_remaining()
        deadline = None if remaining is None else served.batcher.clock() + remaining
        answer = await served.batcher.submit(query, caller, deadline, granted)
        reply = ScoreReply(
            log_probs=answer.log_probs,
            candidate_mass=answer.candidate_mass,
            weights_revision=served.scorer.header.revision,
            queue_us=round(1e6 * answer.queue_seconds),
            compute_us=round(1e6 * answer.compute_seconds),
        )
        return wire.encode_reply(reply, request)


class _Stream:
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
        self._credits = credits
        self._account = account
        self._slots = asyncio.Semaphore(settings.stream_in_flight)
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
        """
        refusal: InvalidRequest | None = None
        async with asyncio.TaskGroup() as answers:
            try:
                async with asyncio.timeout(None) as read:
                    reads.add(read)
                    await self._slots.acquire()
                    async for message in requests:
                        granted = self._account.spend(_positions(message.request))
                        self._bytes += message.request.ByteSize()
                        answers.create_task(self._answer(message.request, granted))
                        del message
                        await self._slots.acquire()
                        while self._bytes > self._most_bytes:
                            self._lighter.clear()
                            await self._lighter.wait()
            except TimeoutError:
                pass  # the teacher is draining
            except InvalidRequest as error:
                refusal = error
            finally:
                reads.discard(read)
        if refusal is not None:
            raise refusal

    async def _answer(self, request: pb.ScoreRequest, granted: bool) -> None:
        answer = pb.StreamScoreResponse(request_id=request.request_id)
        try:
            with self._metrics.request("StreamScore"), self._reserve(request.request_id):
                answer.response.CopyFrom(await self._score(request, granted))
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


def caller_of(context: grpc.aio.ServicerContext) -> str:
    """Who asks: the name that the caller gives itself, otherwise its connection.

    Raises:
        InvalidRequest: the name is not 1 to 64 printable ASCII characters.
    """
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            if not isinstance(value, str) or CALLER_NAME.fullmatch(value) is None:
                raise InvalidRequest(f"metadata {CALLER_KEY}: {value!r} is not 1 to 64 printable ASCII characters")
            return value
    return str(context.peer())


def _positions(request: pb.ScoreRequest) -> int:
    """What a request spends, whether it is valid or not: its positions, one if it has none."""
    return max(1, len(request.candidate_lengths) // POSITION_BYTES)


def describe(scorer: Scorer[ReadyT], settings: ServeConfig) -> TeacherInfo:
    """What GetTeacher says."""
    architecture = scorer.header.architecture
    return TeacherInfo(
        weights_revision=scorer.header.revision,
        tokeniser=scorer.header.tokeniser,
        n_layer=architecture["n_layer"],
        n_head=architecture["n_head"],
        n_embd=architecture["n_embd"],
        block_size=architecture["block_size"],
        parameters=scorer.parameters,
        limits=Limits(
            max_window=architecture["block_size"] - 1,
            max_message_bytes=settings.max_message_bytes,
            max_queued_positions=settings.batching.max_queued_positions,
            max_request_positions=settings.batching.max_request_positions,
            max_request_candidates=settings.batching.max_request_candidates,
        ),
        compute_dtype=scorer.compute_dtype,
        device=scorer.device,
        server_version=shared.__version__,
    )
