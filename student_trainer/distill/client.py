"""The teacher over gRPC: its own thread and event loop, bounded, cut for several teachers, retried.

    submit (any thread) -> loop thread: semaphore -> cut by histories -> attempts on the fleet -> merge -> Future

An attempt is the transport's, who is there is the fleet's; whether and when to try again is decided in one place
(`_collect`). A sub-query that failed is cut anew, for its histories may now go to several others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import socket
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from shared import tracing
from shared.errors import ConfigError, TeacherError
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.tracing import REQUEST
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo, encode_query
from student_trainer.distill import routing
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.fleet import Fleet, open_fleet
from student_trainer.distill.outage import Outage
from student_trainer.distill.retry import Attempts, RetryPolicy, backoff

STREAM_BYTES = 80
"""That a stream adds to a request, at most: its length and the trace's context."""


class GrpcTeacher:
    """A teacher behind an address, or several that serve the same weights behind a list of addresses or a name.

    An attempt that fails is repeated, at another teacher if there is one, otherwise after a pause that grows from
    0.1 s to 10 s, with jitter. All answers carry the weights revision seen at the start, and are whole. How long a
    request is tried is what `on_failure` says; then its future ends with the last `TeacherError`.
    """

    def __init__(self, addresses: str, config: ClientConfig) -> None:
        """Waits for a teacher to answer, at most `connect_seconds`.

        Raises:
            ConfigError: no address.
            Unavailable: none answered in time.
            CompatibilityError: they serve different weights.
        """
        self._config = config
        self._outage = Outage(config)
        self.failure_stats = self._outage.failure_stats
        self._ids = itertools.count(1)
        self._open: set[Future[ScoreReply]] = set()
        self._fleet: Fleet | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-client", daemon=True)
        self._thread.start()
        try:
            self.info: TeacherInfo = asyncio.run_coroutine_threadsafe(self._connect(addresses), self._loop).result()
        except BaseException:
            self.close()
            raise
        self.revision = self.info.weights_revision

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`; may be called from any thread."""
        future = asyncio.run_coroutine_threadsafe(self._answer(query), self._loop)
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

    async def _connect(self, addresses: str) -> TeacherInfo:
        self._in_flight = asyncio.Semaphore(self._config.max_in_flight)
        self._fleet = open_fleet(addresses, self._config, self._config.name or default_name())
        return await self._fleet.connect(self._config.connect_seconds)

    async def _answer(self, query: ScoreQuery) -> ScoreReply:
        parts = routing.within(query, self.info.limits)
        return routing.merge(query, parts, await _all([self._answer_part(part.query) for part in parts]))

    async def _answer_part(self, query: ScoreQuery) -> ScoreReply:
        async with self._in_flight:
            return await self._collect(query, RetryPolicy.of(self._config), Attempts())

    async def _collect(self, query: ScoreQuery, policy: RetryPolicy, attempts: Attempts) -> ScoreReply:
        """The reply to a query, or to a sub-query that has been tried before.

        Raises:
            TeacherError: of the last attempt.
        """
        fleet = self._fleet
        assert fleet is not None
        hashes = routing.history_hashes(query) if len(query.history_lengths) else np.zeros(1, np.uint64)
        is_counted = attempts.made > 0  # as the query that it is a part of
        with contextlib.ExitStack() as outage:
            while True:
                if not is_counted and not fleet.is_there():
                    outage.enter_context(self._outage.waiting())
                    is_counted = True
                pause, label = next(backoff(attempts.made)), fleet.label()
                try:
                    sub_queries = routing.split(query, await fleet.route(hashes, policy.absence_until(pause)))
                    if len(sub_queries) == 1:
                        label = fleet.label(sub_queries[0].endpoint)
                        seconds = policy.attempt_seconds(self._config.deadline_seconds)
                        with tracing.part(REQUEST) as span:
                            if span is not None:
                                span.note(teacher=label, positions=query.positions, attempt=attempts.made + 1)
                            return await fleet.ask(sub_queries[0].endpoint, self._request(query), query, seconds)
                except TeacherError as error:
                    failure = error
                else:
                    collecting = [self._collect(sub_query.query, policy, attempts) for sub_query in sub_queries]
                    return routing.merge(query, sub_queries, await _all(collecting))
                attempts = attempts.after(failure)
                if not fleet.wants_pause(failure):
                    pause = 0.0
                if policy.is_over(attempts, pause):
                    raise type(failure)(f"teacher at {label}: {failure} (attempt {attempts.made})")
                self._outage.note(label, failure, attempts)
                if not is_counted:
                    outage.enter_context(self._outage.waiting())
                    is_counted = True
                await asyncio.sleep(pause)

    def _request(self, query: ScoreQuery) -> pb.ScoreRequest:
        request = encode_query(query, next(self._ids))
        size, limit = request.ByteSize() + STREAM_BYTES, self.info.limits.max_message_bytes
        if size > limit:  # gRPC would answer as if the teacher were busy, and end the stream
            raise ConfigError(
                f"a history with its candidates has {size} bytes, above the teacher's limit of {limit}; "
                "serve with a larger max_message_bytes"
            )
        return request

    async def _shut(self) -> None:
        for future in list(self._open):
            future.cancel()
        if self._fleet is not None:
            await self._fleet.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def default_name() -> str:
    """A caller's name that says where it runs and that nobody else has."""
    host = re.sub(r"[^!-~]", "-", socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


async def _all(asks: Sequence[Coroutine[Any, Any, ScoreReply]]) -> list[ScoreReply]:
    """All results in order; the first failure ends the others."""
    if len(asks) == 1:
        return [await asks[0]]
    tasks = [asyncio.create_task(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
