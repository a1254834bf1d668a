"""A teacher in the process, for tests of what consumes its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from shared import ragged
from shared.wire import ScoreQuery, ScoreReply
from student_trainer.distill.teacher import FailureStats


def scores_of(query: ScoreQuery) -> np.ndarray:
    """Deterministic log-probabilities that depend on each candidate's token alone, normalised per position."""
    lengths = query.candidate_lengths
    mass = 1.0 + (query.candidate_tokens.astype(np.float64) * 7919 % 13)
    total = np.add.reduceat(mass, ragged.offsets(lengths)[:-1])
    return np.log(mass / np.repeat(total, lengths)).astype(np.float16)


class FakeTeacher:
    """Answers at once, or `delay` seconds later from a timer thread."""

    def __init__(
        self, delay: float = 0.0, revision: str = "fake", scores: Callable[[ScoreQuery], np.ndarray] = scores_of
    ) -> None:
        self.delay, self.revision, self.scores = delay, revision, scores
        self.failure_stats = FailureStats()
        self.queries: list[ScoreQuery] = []

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        self.queries.append(query)
        future: Future[ScoreReply] = Future()
        reply = ScoreReply(self.scores(query), None, "fake", 0, 0)
        if self.delay:
            timer = threading.Timer(self.delay, future.set_result, [reply])
            timer.daemon = True
            timer.start()
        else:
            future.set_result(reply)
        return future

    def close(self) -> None:
        """See `Teacher`."""
