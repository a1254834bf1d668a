"""Teachers that answer after a time without computing: a remote accelerator, as the trainer sees it."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future

import numpy as np

from shared.wire import ScoreQuery, ScoreReply
from student_trainer.distill.teacher import FailureStats, Teacher


class SleepingTeacher:
    """Answers evenly over the candidates, in order, from a thread that sleeps meanwhile.

    `serial` serves one request at a time, as one accelerator does: request n is ready `seconds` after both its
    arrival and the end of request n - 1. Otherwise every request is ready `seconds` after its arrival.
    """

    def __init__(self, seconds: float, serial: bool) -> None:
        self.revision, self.failure_stats = "", FailureStats()
        self._seconds, self._serial, self._free_at = seconds, serial, 0.0
        self._waiting: queue.SimpleQueue[tuple[float, Future[ScoreReply], ScoreReply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._answer, name="sleeping-teacher", daemon=True)
        self._thread.start()

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`; called by one thread."""
        now = time.perf_counter()
        self._free_at = (max(now, self._free_at) if self._serial else now) + self._seconds
        lengths = query.candidate_lengths
        reply = ScoreReply(np.repeat(-np.log(lengths), lengths).astype(np.float16), None, "", 0, 0)
        future: Future[ScoreReply] = Future()
        if self._seconds:
            self._waiting.put((self._free_at, future, reply))
        else:
            future.set_result(reply)
        return future

    def close(self) -> None:
        """See `Teacher`."""
        self._waiting.put(None)

    def _answer(self) -> None:
        while (entry := self._waiting.get()) is not None:
            ready_at, future, reply = entry
            time.sleep(max(0.0, ready_at - time.perf_counter()))
            future.set_result(reply)


class AskedWhenNeeded:
    """Asks a teacher only when the answer is wanted, so that the step waits for the whole of it."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.revision, self.failure_stats = teacher.revision, teacher.failure_stats

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        return _Deferred(self._teacher, query)

    def close(self) -> None:
        """See `Teacher`."""
        self._teacher.close()


class _Deferred(Future[ScoreReply]):
    def __init__(self, teacher: Teacher, query: ScoreQuery) -> None:
        super().__init__()
        self._teacher, self._query = teacher, query

    def result(self, timeout: float | None = None) -> ScoreReply:
        """Asks, and waits."""
        return self._teacher.submit(self._query).result(timeout)
