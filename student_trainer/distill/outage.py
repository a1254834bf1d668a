"""What is said and counted while the teacher does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from shared.errors import TeacherError
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.retry import Attempts
from student_trainer.distill.teacher import FailureStats

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
"""Failures that heal within this time are no news."""
REMINDER_SECONDS = 30.0
"""How often it is said that the teacher is still waited for."""


class Outage:
    """The requests that wait for a teacher, or have failed and are tried again.

    Said when it begins, now and then, and when it is over. Belongs to the client's event loop; the counts in
    `failure_stats` may be read anywhere.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.failure_stats = FailureStats()
        self._plan = _plan(config)
        self._waiting = 0
        self._since = 0.0
        self._reason = "nobody is there"
        self._reporter: asyncio.Task[None] | None = None

    def note(self, label: str, error: TeacherError, attempts: Attempts) -> None:
        """A request will be tried again after these attempts."""
        self.failure_stats.retries += 1
        self._reason = f"teacher at {label}: {error}"
        log.debug("%s (attempt %d); trying again", self._reason, attempts.made)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what is left of a request after its first attempt has failed, or found nobody to ask."""
        if self._waiting == 0:
            self._since = time.monotonic()
            self._reporter = asyncio.create_task(self._report())
        self._waiting += 1
        is_answered = False
        try:
            yield
            is_answered = True
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                self._end(is_answered)

    async def _report(self) -> None:
        await asyncio.sleep(QUIET_SECONDS)
        log.warning("waiting for the teacher (%s); %s", self._plan, self._reason)
        while True:
            await asyncio.sleep(REMINDER_SECONDS)
            log.warning(
                "still waiting for the teacher, %.0f s so far, %d request%s; %s",
                time.monotonic() - self._since, self._waiting, "" if self._waiting == 1 else "s", self._reason,
            )  # fmt: skip

    def _end(self, is_answered: bool) -> None:
        seconds = time.monotonic() - self._since
        self.failure_stats.seconds += seconds
        assert self._reporter is not None
        self._reporter.cancel()
        if is_answered and seconds >= QUIET_SECONDS:
            log.warning("the teacher answers again after %.1f s; going on", seconds)


def _plan(config: ClientConfig) -> str:
    """What happens if it does not come back, for the log."""
    if config.on_failure == "skip":
        return f"after {config.skip_after_seconds:g} s a micro-batch is trained without it"
    if config.on_failure == "abort":
        return f"the run stops after {config.attempts} attempts"
    return f"the run stops after {config.retry_seconds:g} s" if config.retry_seconds else "for ever"
