"""The Protocol between trainer and teacher."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from typing import Protocol

from shared.wire import ScoreQuery, ScoreReply


@dataclasses.dataclass
class FailureStats:
    """What a teacher's failures have cost since the run began.

    Attributes:
        retries: attempts that failed and were repeated.
        seconds: with at least one request waiting to be asked again.
    """

    retries: int = 0
    seconds: float = 0.0


class Teacher(Protocol):
    """Answers queries asynchronously. Answers depend on the query alone."""

    revision: str
    """Of its weights, the same for as long as it is open; empty if there is no teacher."""

    failure_stats: FailureStats
    """Retries and waiting so far; may be read from any thread."""

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """Sends a query and returns at once; the future ends with the reply or a `ReportableError`."""
        ...

    def close(self) -> None:
        """Gives up what is under way and frees the connection."""
        ...


class NullTeacher:
    """No teacher: a run with weight 0 never asks."""

    def __init__(self) -> None:
        self.revision = ""
        self.failure_stats = FailureStats()

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """Refuses: whoever asks has mistaken a vanilla run for a distilled one."""
        raise AssertionError("a run without a teacher asked it something")

    def close(self) -> None:
        """Nothing to free."""
