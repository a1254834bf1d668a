"""The batcher: rows of many callers -> batches for one model.

    submit -> rows that are not known yet -> fair queue -> cut -> assemble -> model thread -> answers

It knows neither the model nor the network. A request is split into rows (`rows.py`): those that are remembered are
answered at once, those in flight are waited for, and only the others are queued. Work-conserving: there is no timer,
a batch is cut the moment the model is free and takes what has come in meanwhile, of the least served caller first;
a large request is computed in several batches, small ones share one.

How much a batch may hold is a matter of time. While one caller has the teacher for itself, batches are long, and the
next one is cut and assembled while the model computes. While several have, they are short slices, so that nobody
waits long for another one's rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic, Literal

import numpy as np

from shared.errors import DeadlineExceeded, InternalError, Overloaded, TeacherError, Unavailable
from shared.wire import Float16, ScoreQuery
from teacher_server.config import BatchingConfig
from teacher_server.fair_queue import FairQueue
from teacher_server.metrics import Metrics
from teacher_server.rows import Asked, Int64, RowTable
from teacher_server.scorer import ReadyT, Scorer, Scores

log = logging.getLogger(__name__)

Clock = Callable[[], float]
CutReason = Literal["idle", "full", "deadline", "drain"]

MAX_AHEAD = 2
"""Batches handed over: one that the model computes and one that is assembled."""
ACTIVE_SECONDS = 1.0
"""A caller that asked this recently, or still waits, has a share of the teacher."""
SMALLEST_BUDGET = 128
"""Padded tokens that a batch may always have; with fewer no device is used well."""
FIRST_BUDGET = 1024
"""Padded tokens of a batch as long as the model's speed is not known."""
MEMORY_OF_SPEED = 0.9
"""Weight of the earlier batches in the model's speed, batch by batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one request.

    Attributes:
        log_probs: float16 [K], laid out as the request's candidates.
        candidate_mass: float16 [P], or None if it was not asked for.
        queue_seconds: from admission to the start of the first batch that answered one of its rows; 0 if all were
            remembered.
        compute_seconds: of the batches that it waited for.
    """

    log_probs: Float16
    candidate_mass: Float16 | None
    queue_seconds: float
    compute_seconds: float


@dataclasses.dataclass(eq=False)
class _Entry:
    """A request that waits."""

    asked: Asked
    caller: str
    admitted: float
    deadline: float | None
    answer: asyncio.Future[Answer]
    tokens: int  # not yet cut, as far as the rows were new when they were asked
    queue_seconds: float | None = None
    compute_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """Rows for a batch: their slots and padded tokens, how many requests they are of, and why there are no more."""

    slots: Int64
    tokens: int
    requests: int
    reason: CutReason


@dataclasses.dataclass(frozen=True, eq=False)
class _Computed:
    scores: Scores
    started: float
    ended: float


class Batcher(Generic[ReadyT]):
    """Merges requests into batches. All methods belong to one event loop; the model has a thread of its own."""

    def __init__(
        self,
        scorer: Scorer[ReadyT],
        rows: RowTable,
        model_thread: Executor,
        settings: BatchingConfig,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepares an empty queue.

        Args:
            scorer: the model; `score` is called on `model_thread`, one batch at a time.
            rows: what is in flight and remembered.
            model_thread: an executor with a single worker.
            settings: limits.
            metrics: where batches and waits are counted.
            clock: seconds; that of the deadlines.
        """
        self.clock = clock
        self._scorer = scorer
        self._rows = rows
        self._model_thread = model_thread
        self._assembler = ThreadPoolExecutor(1, "assembler")
        self._settings = settings
        self._metrics = metrics
        self._queue: FairQueue[_Entry] = FairQueue()
        self._queued_tokens = 0
        self._open: dict[_Entry, None] = {}
        self._open_positions = self._open_candidates = 0
        self._unanswered: set[asyncio.Future[Answer]] = set()
        self._latest = ("", -ACTIVE_SECONDS)
        self._other_seen = -ACTIVE_SECONDS
        self._speed = _Speed()
        self._ahead = 0
        self._closing = False
        self._failure = ""
        self._cut_slots = np.empty(settings.max_batch_tokens // max(1, int(scorer.costs[1:].min())) + 1, np.int64)

    async def submit(
        self, query: ScoreQuery, caller: str, deadline: float | None = None, granted: bool = False
    ) -> Answer:
        """Waits for a checked request's answer. Cancelling it takes back the rows that nobody else wants.

        Args:
            query: what to score.
            caller: whose share of the teacher it takes.
            deadline: on the batcher's clock; None for none.
            granted: whether its positions were granted to the caller before; then it is not refused for a full queue.

        Raises:
            Overloaded: the queue has no room for it.
            Unavailable: the batcher is closing.
            DeadlineExceeded: the deadline passed before its rows were cut.
            InternalError: the model failed.
        """
        if self._closing:
            self._metrics.rejected.labels("draining").inc()
            raise Unavailable("the teacher is stopping")
        now = self.clock()
        self._notice(caller, now)
        asked = self._rows.ask(query)
        if asked.is_answered:
            self._metrics.queue_wait_seconds.observe(0.0)
            return Answer(asked.log_probs, asked.candidate_mass, 0.0, 0.0)
        entry = self._admit(_Entry(asked, caller, now, deadline, _future(), asked.cost), granted)
        self._pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._metrics.cancelled.inc()
            self._end(entry)
            raise

    async def close(self) -> None:
        """Refuses new requests and returns when the accepted ones are answered."""
        self._closing = True
        if self._unanswered:
            await asyncio.wait(self._unanswered)
        self._assembler.shutdown(wait=False)

    @property
    def unanswered(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._unanswered)

    def _admit(self, entry: _Entry, granted: bool) -> _Entry:
        if refusal := self._refusal(entry.asked, granted):
            self._rows.release(entry.asked)
            self._metrics.rejected.labels("queue_full").inc()
            raise Overloaded(f"the queue is full: {refusal}; try again later")
        self._queue.push(entry.caller, entry)
        self._queued_tokens += entry.tokens
        self._open[entry] = None
        self._unanswered.add(entry.answer)
        entry.answer.add_done_callback(self._unanswered.discard)
        self._count(entry.asked, 1)
        return entry

    def _refusal(self, asked: Asked, granted: bool) -> str:
        """Why a request has no room in the queue; empty if it has."""
        waiting = [("candidates", self._open_candidates, asked.candidates, self._settings.max_queued_candidates)]
        if not granted:
            waiting.append(
                ("positions", self._open_positions, asked.open_positions, self._settings.max_queued_positions)
            )
        for what, there, more, limit in waiting:
            if there + more > limit:
                return f"{there} {what} wait, {more} more would exceed {limit}"
        return ""

    def _end(self, entry: _Entry) -> None:
        """A request waits no more, whether or not it was answered; twice does no harm."""
        if entry not in self._open:
            return
        del self._open[entry]
        self._unqueue(entry)
        self._rows.release(entry.asked)
        self._count(entry.asked, -1)

    def _unqueue(self, entry: _Entry) -> None:
        self._queue.discard(entry.caller, entry)
        self._queued_tokens -= entry.tokens
        entry.tokens = 0

    def _count(self, asked: Asked, times: int) -> None:
        self._open_positions += times * asked.open_positions
        self._open_candidates += times * asked.candidates
        self._metrics.set_queue(len(self._open), self._open_positions)

    def _pump(self) -> None:
        """Hands over what may be handed over now; called whenever that may have changed."""
        while self._queue and self._may_cut():
            cut = self._cut()
            if len(cut.slots):
                self._start(cut)

    def _may_cut(self) -> bool:
        """While the model computes, only a batch that cannot grow, and that nobody else may have to wait for."""
        if self._ahead == 0:
            return True
        least = min(SMALLEST_BUDGET, self._settings.max_batch_tokens)
        if self._ahead >= MAX_AHEAD or self._queued_tokens < least:
            return False
        return not self._is_shared() and self._queued_tokens >= self._budget()

    def _notice(self, caller: str, now: float) -> None:
        """Remembers who asked last, and when somebody else did."""
        latest, seen = self._latest
        if caller != latest:
            self._other_seen = seen
        self._latest = caller, now

    def _is_shared(self) -> bool:
        """Whether several callers wait or have asked a moment ago."""
        now, waiting, (latest, seen) = self.clock(), self._queue.callers, self._latest
        if len(waiting) > 1 or now - self._other_seen < ACTIVE_SECONDS:
            return True
        return now - seen < ACTIVE_SECONDS and any(caller != latest for caller in waiting)

    def _budget(self) -> float:
        """Padded tokens of the next batch."""
        milliseconds = self._settings.slice_ms if self._is_shared() else self._settings.batch_ms
        tokens = max(SMALLEST_BUDGET, self._speed.tokens_in(milliseconds / 1000))
        return min(tokens, self._settings.max_batch_tokens)

    def _cut(self) -> _Cut:
        """Takes rows for a batch.

        Requests whose caller has gone or waited too long drop out. A batch that holds rows of a request with a
        deadline is kept so short that it should end before.
        """
        now, limit = self.clock(), self._budget()
        reason: CutReason = "drain" if self._closing else "idle"
        is_short = False
        count = tokens = requests = 0
        while self._queue:
            caller, entry = self._queue.first()
            if self._is_dead(entry, now):
                self._end(entry)
                continue
            before = count
            count, spent = self._rows.take(entry.asked, max(0, int(limit) - tokens), self._cut_slots, count)
            tokens += spent
            requests += count > before
            self._queue.charge(caller, spent)
            self._queued_tokens -= min(spent, entry.tokens)
            entry.tokens -= min(spent, entry.tokens)
            if entry.asked.taken < len(entry.asked.slots):
                reason = "deadline" if is_short else "full"
                break
            self._unqueue(entry)
            if entry.deadline is not None:
                in_time = max(tokens, self._speed.tokens_in(entry.deadline - now))
                is_short, limit = (True, in_time) if in_time < limit else (is_short, limit)
        if reason == "idle" and tokens >= limit:
            reason = "full"
        return _Cut(self._cut_slots[:count].copy(), tokens, requests, reason)

    def _is_dead(self, entry: _Entry, now: float) -> bool:
        if entry.answer.done():
            return True  # cancelled; `submit` counts it
        if entry.deadline is None or entry.deadline > now:
            return False
        self._metrics.expired.inc()
        entry.answer.set_exception(DeadlineExceeded("the deadline passed while the request waited for the model"))
        return True

    def _start(self, cut: _Cut) -> None:
        """The model thread assembles the batch itself if it is free; otherwise another thread does meanwhile."""
        batch = self._rows.batch(cut.slots)
        self._metrics.batch_cut(cut.reason, cut.requests, len(batch.scored_row), cut.tokens)
        assemble = functools.partial(self._scorer.assemble, batch)
        ready = assemble if self._ahead == 0 else self._assembler.submit(assemble).result
        self._ahead += 1
        computing = asyncio.get_running_loop().run_in_executor(self._model_thread, self._compute, ready)
        computing.add_done_callback(functools.partial(self._finish, cut))

    def _compute(self, ready: Callable[[], ReadyT]) -> _Computed:
        """On the model thread."""
        started = self.clock()
        scores = self._scorer.score(ready())
        return _Computed(scores, started, self.clock())

    def _finish(self, cut: _Cut, computing: asyncio.Future[_Computed]) -> None:
        """Keeps what was computed, lets the next batch start, then answers those who waited."""
        self._ahead -= 1
        error = computing.exception()
        if error is None:
            computed = computing.result()
            seconds = computed.ended - computed.started
            self._speed.learn(cut.tokens, seconds)
            self._metrics.compute_seconds.observe(seconds)
            self._metrics.scored_positions.inc(len(computed.scores.candidate_mass))
            self._rows.fill(cut.slots, computed.scores)
            self._pump()
            self._answer(computed.started, seconds)
        else:
            self._failure = _explain(error, len(cut.slots))
            self._rows.fail(cut.slots)
            self._answer(self.clock(), 0.0)
            self._pump()

    def _answer(self, started: float, seconds: float) -> None:
        """Answers the requests whose rows have all come, or of which one has failed."""
        waiting = list(self._open)
        if not waiting:
            return
        next_slots = np.array([entry.asked.slots[entry.asked.collected] for entry in waiting])
        for i in np.flatnonzero(self._rows.moved(next_slots)).tolist():
            entry = waiting[i]
            if entry.queue_seconds is None:
                entry.queue_seconds = max(0.0, started - entry.admitted)
            entry.compute_seconds += seconds
            is_good = self._rows.collect(entry.asked)
            if is_good and not entry.asked.is_answered:
                continue
            self._end(entry)
            if entry.answer.done():
                continue
            if is_good:
                self._metrics.queue_wait_seconds.observe(entry.queue_seconds)
                asked = entry.asked
                entry.answer.set_result(
                    Answer(asked.log_probs, asked.candidate_mass, entry.queue_seconds, entry.compute_seconds)
                )
            else:
                entry.answer.set_exception(InternalError(self._failure))


class _Speed:
    """Padded tokens a second of the model, over the last batches."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """A batch took this long."""
        self._tokens = MEMORY_OF_SPEED * self._tokens + tokens
        self._seconds = MEMORY_OF_SPEED * self._seconds + seconds

    def tokens_in(self, seconds: float) -> float:
        """What it can compute in a time."""
        return FIRST_BUDGET if self._seconds <= 0 else seconds * self._tokens / self._seconds


def _future() -> asyncio.Future[Answer]:
    return asyncio.get_running_loop().create_future()


def _explain(error: BaseException, rows: int) -> str:
    """What those who waited for a failed batch are told."""
    log.error("the model failed on a batch of %d rows", rows, exc_info=error)
    if isinstance(error, TeacherError):
        return str(error)
    return f"the model failed ({type(error).__name__}); the teacher's log says why"
