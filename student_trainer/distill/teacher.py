"""The Protocol between trainer and teacher."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from shared.wire import ScoreQuery, ScoreReply


class Teacher(Protocol):
    """Answers queries asynchronously. Answers depend on the query alone."""

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """Sends a query and returns at once; the future ends with the reply or a `ReportableError`."""
        ...

    def close(self) -> None:
        """Gives up what is under way and frees the connection."""
        ...


class NullTeacher:
    """No teacher: a run with weight 0 never asks."""

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """Refuses: whoever asks has mistaken a vanilla run for a distilled one."""
        raise AssertionError("a run without a teacher asked it something")

    def close(self) -> None:
        """Nothing to free."""
