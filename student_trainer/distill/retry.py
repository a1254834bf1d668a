"""How long and how often a request to the teacher is tried."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Iterator

from shared.errors import Overloaded, TeacherError
from student_trainer.distill.config import ClientConfig

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
FINAL_REFUSALS = 3
"""How often in a row a teacher must say that a request is wrong before it is believed: a request that was damaged on
its way, so that it cannot even be read, is called wrong as well."""


def backoff(failures: int = 0) -> Iterator[float]:
    """Pauses before the next attempts, seconds: exponential backoff, capped, with jitter over the upper half."""
    for i in itertools.count(failures):
        yield min(FIRST_PAUSE_SECONDS * 2 ** min(i, 20), LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1)  # noqa: S311 - jitter


@dataclasses.dataclass(frozen=True)
class Attempts:
    """The attempts at one request so far.

    Attributes:
        made: all of them.
        failed: those that count against it: a full queue asks for patience and does not.
        refused: how many in a row were refused for good.
    """

    made: int = 0
    failed: int = 0
    refused: int = 0

    def after(self, error: TeacherError) -> Attempts:
        """With one more, that ended so."""
        failed = self.failed + (not isinstance(error, Overloaded))
        return Attempts(self.made + 1, failed, 0 if error.retryable else self.refused + 1)


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
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
    def of(cls, config: ClientConfig) -> RetryPolicy:
        """That of a request which begins now."""
        now = time.monotonic()
        if config.on_failure == "skip":
            return cls(now + config.skip_after_seconds, bounds_attempts=True)
        return cls(
            now + (config.retry_seconds or math.inf), config.attempts if config.on_failure == "abort" else math.inf
        )

    def is_over(self, attempts: Attempts, pause: float) -> bool:
        """Whether there is no attempt after these, which would come after a pause, seconds."""
        return (
            attempts.refused >= FINAL_REFUSALS
            or attempts.failed >= self.attempts
            or time.monotonic() + pause > self.until
        )

    def attempt_seconds(self, deadline: float) -> float:
        """How long the next attempt may take, of at most `deadline` seconds."""
        return min(deadline, max(0.1, self.until - time.monotonic())) if self.bounds_attempts else deadline

    def absence_until(self, pause: float) -> float:
        """How long to wait for a teacher to be there, monotonic seconds, where the next attempt may come in `pause`."""
        return self.until if math.isinf(self.attempts) else time.monotonic() + pause
