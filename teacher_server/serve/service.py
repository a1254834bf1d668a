"""The teacher service: message -> decode -> check -> batcher -> encode -> message; `stream.py` has the streams."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

import shared
from shared import wire
from shared.errors import Unavailable
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.tracing import Tracer
from shared.wire import Limits, ScoreReply, TeacherInfo
from teacher_server.batching.batcher import Batcher
from teacher_server.metrics import Metrics, Rejection
from teacher_server.request import CURRENT
from teacher_server.scorer import Served
from teacher_server.serve import callers, checks, spans
from teacher_server.serve.callers import caller_of
from teacher_server.serve.checks import RequestLimits
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.credits import CreditPool
from teacher_server.serve.quotas import Quotas
from teacher_server.serve.spans import RequestTrace
from teacher_server.serve.stream import Stream


@dataclasses.dataclass(frozen=True)
class _Teacher:
    """What answers requests, once it is loaded."""

    revision: str
    limits: RequestLimits
    description: pb.GetTeacherResponse
    batcher: Batcher[Any]


class TeacherService(rpc.TeacherServiceServicer):
    """The methods of `teacher.v1.TeacherService`; errors become statuses in `interceptors`.

    Until `open` is called it answers that the teacher is loading.
    """

    def __init__(self, settings: ServeConfig, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._settings = settings
        self._tracer = tracer
        self._metrics = metrics
        self._teacher: _Teacher | None = None
        self._is_draining = False
        self._credits = CreditPool(settings.batching.max_queued_positions)
        metrics.credit_outstanding.set_function(lambda: self._credits.outstanding)
        self._streams: set[asyncio.Task[None]] = set()
        metrics.open_streams.set_function(lambda: len(self._streams))
        self._reads: set[asyncio.Timeout] = set()
        self.quotas = Quotas(settings.quotas, metrics)
        """What callers with named tokens may ask."""

    def open(self, served: Served, batcher: Batcher[Any]) -> None:
        """Serves a loaded teacher from now on."""
        limits = RequestLimits.of(served, self._settings.batching)
        description = wire.encode_info(describe(served, self._settings))
        self._teacher = _Teacher(served.header.revision, limits, description, batcher)

    async def drain(self) -> None:
        """Reads nothing more from the streams, and returns when all that was accepted is answered and sent."""
        self._is_draining = True
        self.quotas.stop()
        now = asyncio.get_running_loop().time()
        for read in self._reads:
            read.reschedule(now)
        if self._teacher is not None:
            await self._teacher.batcher.close()
        if self._streams:
            await asyncio.wait(self._streams)

    @property
    def unanswered(self) -> int:
        """Requests accepted and not yet answered."""
        return 0 if self._teacher is None else self._teacher.batcher.unanswered

    async def GetTeacher(  # noqa: N802 - named by the contract
        self, request: pb.GetTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTeacherResponse:
        """What is served."""
        return self._loaded().description

    async def Score(  # noqa: N802
        self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> pb.ScoreResponse:
        """Scores one request."""
        caller = caller_of(context)
        if self._tracer is None:
            return await self._score(request, context, caller, is_streamed=False)
        with spans.served(self._tracer, "Score", "", context, time.monotonic, caller) as trace:
            return await self._score(request, context, caller, is_streamed=False, trace=trace)

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

        tracer = self._tracer

        async def score(message: pb.StreamScoreRequest, granted: bool) -> pb.ScoreResponse:
            request = message.request
            if tracer is None:
                return await self._score(request, context, caller, is_streamed=True, granted=granted)
            parent = message.traceparent
            with spans.served(tracer, "StreamScore", parent, context, time.monotonic, caller) as trace:
                return await self._score(request, context, caller, is_streamed=True, granted=granted, trace=trace)

        account = self._credits.open()
        stream = Stream(score, self._settings, self._metrics, context, self._credits, account)
        try:
            await stream.run(requests, self._reads)
        finally:
            self._credits.close(account)
        self._refuse_if_draining()

    def _refuse_if_draining(self) -> None:
        if self._is_draining:
            raise Unavailable("the teacher is stopping")

    def _loaded(self) -> _Teacher:
        if self._teacher is None:
            self._metrics.reject(Rejection.LOADING)
            raise Unavailable("the teacher is loading")
        return self._teacher

    async def _score(
        self,
        request: pb.ScoreRequest,
        context: grpc.aio.ServicerContext,
        caller: str,
        is_streamed: bool,
        granted: bool = False,
        trace: RequestTrace | None = None,
    ) -> pb.ScoreResponse:
        teacher, known = self._loaded(), CURRENT.get()
        known.caller = caller
        query = wire.decode_query(request)
        known.positions = query.positions
        checks.check(query, teacher.limits)
        await self.quotas.admit(callers.known(), query.positions, is_streamed)
        remaining = context.time_remaining()
        deadline = None if remaining is None else teacher.batcher.clock() + remaining
        timeline = None if trace is None else trace.timeline
        answer = await teacher.batcher.submit(query, caller, deadline, granted, timeline)
        if trace is not None:
            trace.answered(query.positions)
        known.queue_us, known.compute_us = round(1e6 * answer.queue_seconds), round(1e6 * answer.compute_seconds)
        reply = ScoreReply(
            log_probs=answer.log_probs,
            candidate_mass=answer.candidate_mass,
            weights_revision=teacher.revision,
            queue_us=known.queue_us,
            compute_us=known.compute_us,
        )
        response = wire.encode_reply(reply, request)
        if trace is not None:
            trace.encoded()
        return response


def describe(served: Served, settings: ServeConfig) -> TeacherInfo:
    """What GetTeacher says."""
    architecture = served.header.architecture
    return TeacherInfo(
        weights_revision=served.header.revision,
        tokeniser=served.header.tokeniser,
        n_layer=int(architecture.get("n_layer", 0)),
        n_head=int(architecture.get("n_head", 0)),
        n_embd=int(architecture.get("n_embd", 0)),
        block_size=served.header.block_size,
        parameters=served.parameters,
        limits=Limits(
            max_window=served.longest,
            max_message_bytes=settings.max_message_bytes,
            max_queued_positions=settings.batching.max_queued_positions,
            max_request_positions=settings.batching.max_request_positions,
            max_request_candidates=settings.batching.max_request_candidates,
        ),
        compute_dtype=served.compute_dtype,
        device=served.device,
        server_version=shared.__version__,
    )
