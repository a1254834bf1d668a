"""How fast a job works, and how long it will take: from the pace of its first portions, then of all."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

WARM_UP_PORTIONS = 3
"""First portions, which say little about the others: memory is taken, kernels are chosen."""
FEW_PORTIONS, FEW_SECONDS = 20, 30.0
"""After so many portions, or so long, a forecast is worth saying."""


class Forecast:
    """Pace of a job whose work comes in portions; pauses between two portions count only if they are told.

    Attributes:
        portions, work, seconds: what has been measured, without the first portions.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._left_out = 0
        self.portions, self.work, self.seconds = 0, 0.0, 0.0

    def begin(self) -> None:
        """A portion begins; what has passed since the last one is a pause."""
        self._begun = self._clock()

    def add(self, work: float) -> None:
        """A portion of so much work is done; the next one begins."""
        now = self._clock()
        if self._left_out < WARM_UP_PORTIONS:
            self._left_out += 1
        else:
            self.portions += 1
            self.work += work
            self.seconds += now - self._begun
        self._begun = now

    @property
    def is_worth_saying(self) -> bool:
        """Whether enough was measured."""
        return self.portions >= FEW_PORTIONS or (self.portions > 0 and self.seconds >= FEW_SECONDS)

    @property
    def pace(self) -> float:
        """Work a second; 0 while nothing was measured."""
        return self.work / self.seconds if self.seconds > 0 else 0.0

    def seconds_for(self, work: float) -> float | None:
        """How long so much work will take; None while nobody knows."""
        return work / self.pace if self.pace > 0 else None


def to_go(seconds: float) -> str:
    """How long a job will take from now, and until when, for people."""
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    return f"{spoken(seconds)} to go, until about {end.isoformat(' ', 'minutes')}"


def spoken(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes % (24 * 60) // 60} h"
