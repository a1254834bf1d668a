"""Pacing: how much a batch may hold, and whether one may be cut while another is computed.

The measure is time. While one caller has the teacher for itself, batches are long, and the next one is cut while the
model computes. While several callers share it, batches are short slices, so that nobody waits long for another one's
rows. An accelerator would idle between them: there the next slice, if it is full, is cut meanwhile, too. Tokens follow
from time by the model's speed, which is learned batch by batch.

Times are arguments, in seconds on one clock: nothing here waits or reads a clock.
"""

from __future__ import annotations

from collections.abc import Collection

from teacher_server.batching.config import BatchingConfig

MAX_AHEAD = 2
"""Batches handed over: one that the model computes and one that is assembled."""
ACTIVE_SECONDS = 1.0
"""A caller that asked this recently, or still waits, has a share of the teacher."""
SMALLEST_BUDGET = 128
"""Padded tokens that a batch may always have; with fewer no device is used well."""
FIRST_BUDGET = 1024
"""Padded tokens of a batch as long as the model's speed is not known."""
SPEED_DECAY = 0.9
"""Weight of the earlier batches in the model's speed, batch by batch."""


class Pacing:
    """Decides by who asked when, who waits, and the model's speed over the last batches."""

    def __init__(self, settings: BatchingConfig, is_accelerated: bool = False) -> None:
        """Knows no caller and no speed yet.

        Args:
            settings: with a number for `max_batch_tokens`.
            is_accelerated: whether the model computes on another device than this process does.
        """
        self._settings = settings
        self._is_accelerated = is_accelerated
        self._latest, self._latest_seen = "", -ACTIVE_SECONDS
        self._other_seen = -ACTIVE_SECONDS
        self._tokens = self._seconds = 0.0

    def saw(self, caller: str, now: float) -> None:
        """A caller has asked."""
        if caller != self._latest:
            self._other_seen = self._latest_seen
        self._latest, self._latest_seen = caller, now

    def computed(self, tokens: int, seconds: float) -> None:
        """A batch of so many padded tokens took the model this long."""
        self._tokens = SPEED_DECAY * self._tokens + tokens
        self._seconds = SPEED_DECAY * self._seconds + seconds

    def tokens_in(self, seconds: float) -> float:
        """Padded tokens that the model computes in a time."""
        return FIRST_BUDGET if self._seconds <= 0 else seconds * self._tokens / self._seconds

    def is_shared(self, waiting: Collection[str], now: float) -> bool:
        """Whether several callers wait or have asked a moment ago."""
        if len(waiting) > 1 or now - self._other_seen < ACTIVE_SECONDS:
            return True
        return now - self._latest_seen < ACTIVE_SECONDS and any(caller != self._latest for caller in waiting)

    def budget(self, waiting: Collection[str], now: float) -> float:
        """Padded tokens of the next batch."""
        milliseconds = self._settings.slice_ms if self.is_shared(waiting, now) else self._settings.batch_ms
        tokens = max(SMALLEST_BUDGET, self.tokens_in(milliseconds / 1000))
        return min(tokens, self._settings.max_batch_tokens)

    def may_cut(self, ahead: int, queued_tokens: int, waiting: Collection[str], now: float) -> bool:
        """Whether a batch may be cut now.

        While the model computes, only one that cannot grow, and on a CPU that nobody else may have to wait for.

        Args:
            ahead: batches handed over and not computed yet.
            queued_tokens: padded tokens that wait to be cut.
            waiting: callers with requests in the queue.
            now: seconds.
        """
        if ahead == 0:
            return True
        least = min(SMALLEST_BUDGET, self._settings.max_batch_tokens)
        if ahead >= MAX_AHEAD or queued_tokens < least:
            return False
        if self.is_shared(waiting, now) and not self._is_accelerated:
            return False
        return queued_tokens >= self.budget(waiting, now)
