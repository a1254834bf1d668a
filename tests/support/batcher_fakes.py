"""A batcher without a model: what it is asked is recorded, and it answers only when the test lets it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import numpy as np

from shared.arrays import Float16
from shared.errors import Overloaded, Unavailable
from shared.wire import ScoreQuery
from teacher_server.batching.batcher import Answer
from teacher_server.batching.timeline import BatchTimes


def answer_to(query: ScoreQuery) -> Float16:
    """What `FakeBatcher` answers: minus (candidate + sum of the whole history), in 64ths."""
    return (-(query.candidate_tokens + int(query.history_tokens.sum())) / 64).astype(np.float16)


@dataclasses.dataclass(frozen=True, eq=False)
class Submitted:
    """One call of `submit`."""

    query: ScoreQuery
    caller: str
    granted: bool


class FakeBatcher:
    """Holds at most `limit` positions; those that are granted come in regardless."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.submitted: list[Submitted] = []
        self.refused = 0
        self.cancelled = 0
        self.waiting = 0
        self.most_waiting = 0
        self.pause = 0.0
        self._limit = limit
        self._requests: set[object] = set()
        self._closing = False
        self._gate = asyncio.Event()
        self._gate.set()

    def clock(self) -> float:
        """See `Batcher`."""
        return time.monotonic()

    def hold(self) -> None:
        """From now on nothing is answered before `release`."""
        self._gate.clear()

    def release(self) -> None:
        """Answers everything from now on."""
        self._gate.set()

    @property
    def unanswered(self) -> int:
        """See `Batcher`."""
        return len(self._requests)

    async def submit(
        self,
        query: ScoreQuery,
        caller: str,
        deadline: float | None = None,
        granted: bool = False,
        timeline: list[BatchTimes] | None = None,
    ) -> Answer:
        """See `Batcher`."""
        positions = max(1, query.positions)
        if self._closing:
            raise Unavailable("the teacher is stopping")
        if not granted and self.waiting + positions > self._limit:
            self.refused += 1
            raise Overloaded("the queue is full")
        self.submitted.append(Submitted(query, caller, granted))
        request: Any = object()
        self._requests.add(request)
        self.waiting += positions
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await asyncio.sleep(self.pause)
            await self._gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= positions
            self._requests.discard(request)
        mass = np.full(query.positions, 0.5, np.float16) if query.include_candidate_mass else None
        return Answer(log_probs=answer_to(query), candidate_mass=mass, queue_seconds=0.0, compute_seconds=0.0)

    async def close(self) -> None:
        """See `Batcher`."""
        self._closing = True
        while self._requests:
            await asyncio.sleep(0.002)
