"""The batcher: requests of many callers -> batches for one model.

    submit -> queue -> cut -> model thread -> answers

It knows neither the model nor the network: a work has a cost and positions, a caller has a
future. Work-conserving: there is no timer, a batch is cut the moment the model is free and
takes what has come in meanwhile, oldest first. While the model computes, a batch that the
queue fills to its limit is cut already, so that the model need not wait for the event loop;
one that could still grow is not.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, Literal

from shared.errors import DeadlineExceeded, InternalError, Overloaded, TeacherError, Unavailable
from teacher_server.config import BatchingConfig
from teacher_server.metrics import Metrics
from teacher_server.scorer import Scores, WorkT

log = logging.getLogger(__name__)

Clock = Callable[[], float]
CutReason = Literal["idle", "full", "drain"]

MAX_AHEAD = 2
"""Batches handed to the model thread: one that it computes and one that is full and waits."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one work.

    Attributes:
        scores: from the model.
        queue_seconds: from admission to the start of its batch.
        compute_seconds: of its batch.
    """

    scores: Scores
    queue_seconds: float
    compute_seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry(Generic[WorkT]):
    work: WorkT
    admitted: float
    deadline: float | None
    answer: asyncio.Future[Answer]

    @property
    def positions(self) -> int:
        """What it takes of the queue: a request without positions takes something, too."""
        return max(1, self.work.positions)


@dataclasses.dataclass(frozen=True, eq=False)
class _Computed:
    scores: list[Scores]
    started: float
    ended: float


class Batcher(Generic[WorkT]):
    """Merges works into batches. All methods belong to one event loop; the model has a thread of its own."""

    def __init__(
        self,
        score: Callable[[Sequence[WorkT]], list[Scores]],
        model_thread: Executor,
        settings: BatchingConfig,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepares an empty queue.

        Args:
            score: the model; called on `model_thread`, one batch at a time.
            model_thread: an executor with a single worker.
            settings: limits.
            metrics: where batches and waits are counted.
            clock: seconds; that of the deadlines.
        """
        self.clock = clock
        self._score = score
        self._model_thread = model_thread
        self._settings = settings
        self._metrics = metrics
        self._queue: collections.OrderedDict[_Entry[WorkT], None] = collections.OrderedDict()
        self._queued_positions = 0
        self._queued_tokens = 0
        self._unanswered: set[asyncio.Future[Answer]] = set()
        self._ahead = 0
        self._closing = False

    async def submit(self, work: WorkT, deadline: float | None = None) -> Answer:
        """Waits for the model's answer. Cancelling it takes the work back, unless its batch is cut.

        Args:
            work: what to score.
            deadline: on the batcher's clock; None for none.

        Raises:
            Overloaded: the queue has no room for it.
            Unavailable: the batcher is closing.
            DeadlineExceeded: the deadline passed before its batch was cut.
            InternalError: the model failed.
        """
        entry = self._admit(work, deadline)
        self._pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._metrics.cancelled.inc()
            self._take_out(entry)
            raise

    async def close(self) -> None:
        """Refuses new works and returns when the accepted ones are answered."""
        self._closing = True
        if self._unanswered:
            await asyncio.wait(self._unanswered)

    @property
    def unanswered(self) -> int:
        """Works accepted and not yet answered."""
        return len(self._unanswered)

    def _admit(self, work: WorkT, deadline: float | None) -> _Entry[WorkT]:
        if self._closing:
            self._metrics.rejected.labels("draining").inc()
            raise Unavailable("the teacher is stopping")
        entry = _Entry(work, self.clock(), deadline, asyncio.get_running_loop().create_future())
        limit = self._settings.max_queued_positions
        if self._queued_positions + entry.positions > limit:
            self._metrics.rejected.labels("queue_full").inc()
            raise Overloaded(
                f"the queue is full: {self._queued_positions} positions wait, {entry.positions} more would exceed "
                f"{limit}; try again later"
            )
        self._queue[entry] = None
        self._unanswered.add(entry.answer)
        entry.answer.add_done_callback(self._unanswered.discard)
        self._count_queue(entry.positions, work.cost)
        return entry

    def _take_out(self, entry: _Entry[WorkT]) -> None:
        """Removes a work from the queue if it is still there."""
        if entry in self._queue:
            del self._queue[entry]
            self._count_queue(-entry.positions, -entry.work.cost)

    def _count_queue(self, positions: int, tokens: int) -> None:
        self._queued_positions += positions
        self._queued_tokens += tokens
        self._metrics.set_queue(len(self._queue), self._queued_positions)

    def _pump(self) -> None:
        """Hands over what may be handed over now; called whenever that may have changed."""
        while self._queue and self._may_cut():
            batch, reason = self._cut()
            if batch:
                self._start(batch, reason)

    def _may_cut(self) -> bool:
        full = self._queued_tokens >= self._settings.max_batch_tokens
        return self._ahead == 0 or (full and self._ahead < MAX_AHEAD)

    def _cut(self) -> tuple[list[_Entry[WorkT]], CutReason]:
        """Takes the oldest works that fit one batch; those whose caller has gone or waited too long drop out."""
        batch: list[_Entry[WorkT]] = []
        tokens, limit, now = 0, self._settings.max_batch_tokens, self.clock()
        while self._queue:
            entry = next(iter(self._queue))
            if self._is_dead(entry, now):
                self._take_out(entry)
                continue
            if batch and tokens + entry.work.cost > limit:
                return batch, "full"
            self._take_out(entry)
            batch.append(entry)
            tokens += entry.work.cost
        if tokens >= limit:
            return batch, "full"
        return batch, "drain" if self._closing else "idle"

    def _is_dead(self, entry: _Entry[WorkT], now: float) -> bool:
        if entry.answer.done():
            return True  # cancelled; `submit` counts it
        if entry.deadline is None or entry.deadline > now:
            return False
        self._metrics.expired.inc()
        entry.answer.set_exception(DeadlineExceeded("the deadline passed while the request waited for the model"))
        return True

    def _start(self, batch: list[_Entry[WorkT]], reason: CutReason) -> None:
        works = [entry.work for entry in batch]
        self._metrics.batch_cut(
            reason, len(works), sum(work.positions for work in works), sum(work.cost for work in works)
        )
        self._ahead += 1
        computing = asyncio.get_running_loop().run_in_executor(self._model_thread, self._compute, works)
        computing.add_done_callback(functools.partial(self._finish, batch))

    def _compute(self, works: list[WorkT]) -> _Computed:
        """On the model thread."""
        started = self.clock()
        scores = self._score(works)
        if len(scores) != len(works):
            raise InternalError(f"the model gave {len(scores)} answers to {len(works)} requests")
        return _Computed(scores, started, self.clock())

    def _finish(self, batch: list[_Entry[WorkT]], computing: asyncio.Future[_Computed]) -> None:
        """Lets the next batch start, then answers every member of this one."""
        self._ahead -= 1
        self._pump()
        error = computing.exception()
        if error is None:
            self._answer(batch, computing.result())
        else:
            _refuse(batch, error)

    def _answer(self, batch: list[_Entry[WorkT]], computed: _Computed) -> None:
        seconds = computed.ended - computed.started
        self._metrics.compute_seconds.observe(seconds)
        for entry, scores in zip(batch, computed.scores, strict=True):
            waited = computed.started - entry.admitted
            self._metrics.queue_wait_seconds.observe(waited)
            self._metrics.scored_positions.inc(entry.work.positions)
            if not entry.answer.done():
                entry.answer.set_result(Answer(scores, waited, seconds))


def _refuse(batch: list[_Entry[WorkT]], error: BaseException) -> None:
    """Answers every member with the failure of its batch, each with an exception of its own."""
    log.error("the model failed on a batch of %d requests", len(batch), exc_info=error)
    if isinstance(error, TeacherError):
        message = str(error)
    else:
        message = f"the model failed ({type(error).__name__}); the teacher's log says why"
    for entry in batch:
        if not entry.answer.done():
            entry.answer.set_exception(InternalError(message))
