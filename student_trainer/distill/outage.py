"""How long a request is tried, and what is said and counted while the teacher does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator

from shared.errors import Overloaded, TeacherError
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.teacher import Trouble

log = logging.getLogger(__name__)

FINAL_REFUSALS = 3
"""How often in a row a teacher must say that a request is wrong before it is believed: a request that was damaged on
its way, so that it cannot even be read, is called wrong as well."""
QUIET_SECONDS = 1.0
"""Failures that heal within this time are no news."""
REMINDER_SECONDS = 30.0
"""How often it is said that the teacher is still waited for."""


@dataclasses.dataclass(frozen=True)
class Tries:
    """The attempts at one request so far.

    Attributes:
        made: all of them.
        failed: those that count against it: a full queue asks for patience and does not.
        refused: how many in a row were refused for good.
    """

    made: int = 0
    failed: int = 0
    refused: int = 0

    def after(self, error: TeacherError) -> Tries:
        """With one more, that ended so."""
        failed = self.failed + (not isinstance(error, Overloaded))
        return Tries(self.made + 1, failed, 0 if error.retryable else self.refused + 1)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a request is tried before it has failed for good.

    Attributes:
        until: monotonic seconds.
        attempts: that may fail.
        bounds_attempts: whether no attempt may last beyond `until`.
    """

    until: float
    attempts: float = math.inf
    bounds_attempts: bool = False

    @classmethod
    def of(cls, config: ClientConfig) -> Patience:
        """That of a request which begins now."""
        now = time.monotonic()
        if config.on_failure == "skip":
            return cls(now + config.skip_after_seconds, bounds_attempts=True)
        return cls(
            now + (config.retry_seconds or math.inf), config.attempts if config.on_failure == "abort" else math.inf
        )

    def is_over(self, tries: Tries, pause: float) -> bool:
        """Whether there is no attempt after these, which would come after a pause, seconds."""
        return tries.refused >= FINAL_REFUSALS or tries.failed >= self.attempts or time.monotonic() + pause > self.until

    def attempt_seconds(self, deadline: float) -> float:
        """How long the next attempt may take, of at most `deadline` seconds."""
        return min(deadline, max(0.1, self.until - time.monotonic())) if self.bounds_attempts else deadline

    def absence_until(self, pause: float) -> float:
        """How long to wait for a teacher to be there, monotonic seconds, where the next attempt may come in `pause`."""
        return self.until if math.isinf(self.attempts) else time.monotonic() + pause


class Outage:
    """The requests that have failed and are tried again: said when it begins, now and then, and when it is over.

    Belongs to the client's event loop; the counts in `trouble` may be read anywhere.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.trouble = Trouble()
        self._plan = _plan(config)
        self._waiting = 0
        self._since = 0.0
        self._reason = ""
        self._reporter: asyncio.Task[None] | None = None

    def note(self, label: str, error: TeacherError, tries: Tries) -> None:
        """A request will be tried again after these attempts."""
        self.trouble.retries += 1
        self._reason = f"teacher at {label}: {error}"
        log.debug("%s (attempt %d); trying again", self._reason, tries.made)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what is left of a request after its first attempt has failed."""
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
                "still waiting for the teacher, %.0f s so far, %d requests; %s",
                time.monotonic() - self._since, self._waiting, self._reason,
            )  # fmt: skip

    def _end(self, is_answered: bool) -> None:
        seconds = time.monotonic() - self._since
        self.trouble.seconds += seconds
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
