"""The batcher: rows of many callers -> batches for one model.

    submit -> rows that are not known yet -> fair queue -> cut -> assemble -> model thread -> answers

It knows neither the model nor the network. The answer table (`answers/table.py`) splits a request into rows and
deduplicates them: those that are remembered are answered at once, those in flight are waited for, and only the others
are queued. Admission (`admission.py`) refuses what exceeds the queue.

Batching is dynamic and work-conserving. There is no timer: a batch is cut the moment the model is free, takes what
has come in meanwhile (`backlog.py`), of the least served caller first (`fair_queue.py`), and holds as much as
`pacing.py` allows. A large request is computed in several batches, small ones share one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic

import numpy as np

from shared.arrays import Float16
from shared.errors import DeadlineExceeded, InternalError, Overloaded, TeacherError, Unavailable
from shared.wire import ScoreQuery
from teacher_server.answers.table import AnswerTable
from teacher_server.batching.admission import Admission
from teacher_server.batching.backlog import Backlog, Cut, Queued
from teacher_server.batching.config import BatchingConfig
from teacher_server.batching.pacing import Pacing
from teacher_server.batching.timeline import BatchScores, BatchTimes
from teacher_server.metrics import Metrics, Rejection
from teacher_server.scorer import Batch, ReadyT, Scorer, ScorerLost

log = logging.getLogger(__name__)

Clock = Callable[[], float]


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
class _Entry(Queued):
    """A request that waits for rows, cut or not."""

    admitted: float
    answer: asyncio.Future[Answer]
    timeline: list[BatchTimes] | None = None
    queue_seconds: float | None = None
    compute_seconds: float = 0.0


class Batcher(Generic[ReadyT]):
    """Merges requests into batches. All methods belong to one event loop; the model has a thread of its own."""

    def __init__(
        self,
        scorer: Scorer[ReadyT],
        answers: AnswerTable,
        model_thread: Executor,
        settings: BatchingConfig,
        metrics: Metrics,
        clock: Clock = time.monotonic,
        *,
        is_accelerated: bool = False,
        on_lost: Callable[[], None] | None = None,
        share: Callable[[str], float] | None = None,
    ) -> None:
        """Prepares an empty queue.

        Args:
            scorer: the model; `score` is called on `model_thread`, one batch at a time.
            answers: what is in flight and remembered.
            model_thread: an executor with a single worker.
            settings: limits.
            metrics: where batches and waits are counted.
            clock: seconds; that of the deadlines.
            is_accelerated: whether the model computes on another device than this process does.
            on_lost: called once if the scorer will never score again; from then on every request is refused.
            share: of each caller, relative to others; none: all have the same.
        """
        settings = settings.chosen(is_accelerated)
        self.clock = clock
        self._scorer = scorer
        self._answers = answers
        self._model_thread = model_thread
        self._assembler = ThreadPoolExecutor(1, "assembler")
        self._metrics = metrics
        self._admission = Admission(settings)
        self._pacing = Pacing(settings, is_accelerated)
        most_rows = settings.max_batch_tokens // max(1, int(scorer.costs[1:].min())) + 1
        self._backlog: Backlog[_Entry] = Backlog(answers, self._pacing, most_rows, share)
        self._open: dict[_Entry, None] = {}
        self._unanswered: set[asyncio.Future[Answer]] = set()
        self._ahead = 0
        self._closing = False
        self._failure = self._lost = ""
        self._on_lost = on_lost

    async def submit(
        self,
        query: ScoreQuery,
        caller: str,
        deadline: float | None = None,
        granted: bool = False,
        timeline: list[BatchTimes] | None = None,
    ) -> Answer:
        """Waits for a checked request's answer. Cancelling it takes back the rows that nobody else wants.

        Args:
            query: what to score.
            caller: whose share of the teacher it takes.
            deadline: on the batcher's clock; None for none.
            granted: whether its positions were granted to the caller before; then it is not refused for a full queue.
            timeline: where to add the times of the batches that it waits for.

        Raises:
            Overloaded: the queue has no room for it.
            Unavailable: the batcher is closing, or the scorer is lost.
            DeadlineExceeded: the deadline passed before its rows were cut.
            InternalError: the model failed.
        """
        if self._closing:
            self._metrics.reject(Rejection.DRAINING)
            raise Unavailable("the teacher is stopping")
        if self._lost:
            raise Unavailable(self._lost)
        now = self.clock()
        self._pacing.saw(caller, now)
        pending = self._answers.ask(query)
        if pending.is_answered:
            self._metrics.queue_wait_seconds.observe(0.0)
            return Answer(pending.log_probs, pending.candidate_mass, 0.0, 0.0)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        entry = self._admit(_Entry(pending, caller, deadline, pending.cost, now, answer, timeline), granted)
        self._pump()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._metrics.cancelled.inc()
            self._remove(entry)
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
        pending = entry.pending
        if refusal := self._admission.refusal(pending.open_positions, pending.candidates, granted):
            self._answers.release(pending)
            self._metrics.reject(Rejection.QUEUE_FULL)
            raise Overloaded(f"the queue is full: {refusal}; try again later")
        self._backlog.push(entry)
        self._open[entry] = None
        self._unanswered.add(entry.answer)
        entry.answer.add_done_callback(self._unanswered.discard)
        self._admission.add(pending.open_positions, pending.candidates)
        self._metrics.set_queue(len(self._open), self._admission.positions)
        return entry

    def _remove(self, entry: _Entry) -> None:
        """Removes a request, whether or not it was answered; idempotent."""
        if entry not in self._open:
            return
        del self._open[entry]
        self._backlog.discard(entry)
        self._answers.release(entry.pending)
        self._admission.remove(entry.pending.open_positions, entry.pending.candidates)
        self._metrics.set_queue(len(self._open), self._admission.positions)

    def _pump(self) -> None:
        """Hands over what may be handed over now; called whenever that may have changed."""
        backlog = self._backlog
        while backlog and self._pacing.may_cut(self._ahead, backlog.tokens, backlog.callers, self.clock()):
            cut = backlog.cut(self.clock(), self._closing, self._drop)
            if len(cut.slots):
                self._start(cut)

    def _drop(self, entry: _Entry, now: float) -> bool:
        """Removes a request whose caller has gone or has waited too long."""
        if not entry.answer.done():  # if it is, it was cancelled, and `submit` counts it
            if entry.deadline is None or entry.deadline > now:
                return False
            self._metrics.expired.inc()
            entry.answer.set_exception(DeadlineExceeded("the deadline passed while the request waited for the model"))
        self._remove(entry)
        return True

    def _start(self, cut: Cut) -> None:
        """The model thread assembles the batch itself if it is free; otherwise another thread does meanwhile."""
        batch = self._answers.batch(cut.slots)
        self._metrics.batch_cut(cut.reason, cut.requests, len(batch.scored_row), cut.tokens)
        assemble = functools.partial(self._assemble, batch)
        ready = assemble if self._ahead == 0 else self._assembler.submit(assemble).result
        self._ahead += 1
        computing = asyncio.get_running_loop().run_in_executor(self._model_thread, self._compute, ready)
        computing.add_done_callback(functools.partial(self._finish, cut))

    def _assemble(self, batch: Batch) -> tuple[ReadyT, float, float]:
        """On any thread; with when it began and ended."""
        began = self.clock()
        return self._scorer.assemble(batch), began, self.clock()

    def _compute(self, assembled: Callable[[], tuple[ReadyT, float, float]]) -> BatchScores:
        """On the model thread."""
        started = self.clock()
        ready, assembling, ready_at = assembled()
        computing = self.clock()
        scores = self._scorer.score(ready)
        return BatchScores(scores, started, BatchTimes(assembling, ready_at, computing, self.clock()))

    def _finish(self, cut: Cut, computing: asyncio.Future[BatchScores]) -> None:
        """Keeps what was computed, lets the next batch start, then answers those who waited."""
        self._ahead -= 1
        error = computing.exception()
        if error is None:
            computed = computing.result()
            seconds = computed.times.computed - computed.started
            self._pacing.computed(cut.tokens, seconds)
            self._metrics.compute_seconds.observe(seconds)
            self._metrics.scored_positions.inc(len(computed.scores.candidate_mass))
            self._answers.fill(cut.slots, computed.scores)
            self._pump()
            self._answer(computed.started, seconds, computed.times)
        else:
            self._failure = _explain(error, len(cut.slots))
            self._answers.fail(cut.slots)
            if isinstance(error, ScorerLost) and not self._lost:
                self._lost = str(error)
                if self._on_lost is not None:
                    self._on_lost()
            self._answer(self.clock(), 0.0)
            self._pump()

    def _answer(self, started: float, seconds: float, times: BatchTimes | None = None) -> None:
        """Answers the requests whose rows have all come, or of which one has failed."""
        waiting = list(self._open)
        if not waiting:
            return
        next_slots = np.array([entry.pending.slots[entry.pending.collected] for entry in waiting])
        for i in np.flatnonzero(self._answers.moved(next_slots)).tolist():
            entry = waiting[i]
            if entry.queue_seconds is None:
                entry.queue_seconds = max(0.0, started - entry.admitted)
            entry.compute_seconds += seconds
            if entry.timeline is not None and times is not None:
                entry.timeline.append(times)
            is_good = self._answers.collect(entry.pending)
            if is_good and not entry.pending.is_answered:
                continue
            self._remove(entry)
            if entry.answer.done():
                continue
            if is_good:
                self._metrics.queue_wait_seconds.observe(entry.queue_seconds)
                pending = entry.pending
                entry.answer.set_result(
                    Answer(pending.log_probs, pending.candidate_mass, entry.queue_seconds, entry.compute_seconds)
                )
            else:
                error = Unavailable(self._lost) if self._lost else InternalError(self._failure)
                entry.answer.set_exception(error)


def _explain(error: BaseException, rows: int) -> str:
    """What those who waited for a failed batch are told."""
    log.error("the model failed on a batch of %d rows", rows, exc_info=error)
    if isinstance(error, TeacherError):
        return str(error)
    return f"the model failed ({type(error).__name__}); the teacher's log says why"
