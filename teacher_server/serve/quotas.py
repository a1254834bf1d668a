"""What callers with named tokens may ask: positions per second, shares of the teacher, and counts by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from shared.errors import Overloaded, Unavailable
from teacher_server.metrics import Metrics, Rejection
from teacher_server.serve.config import QuotaConfig

BURST_SECONDS = 1.0
"""A caller that has asked nothing may ask at once what it may ask in this time."""
MOST_NAMES = 100
"""Names that are counted by themselves; those that come later are counted together."""
OTHER = "other"


class Bucket:
    """A token bucket that may go into debt: a request is let in while it holds anything, however large it is, so that
    large requests come rarely instead of never."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        """Full; `rate` is positions a second."""
        self._rate, self._clock = rate, clock
        self._level, self._since = rate * BURST_SECONDS, clock()
        self.turn = asyncio.Lock()
        """Held by who waits: those behind it wait in the order in which they came."""

    @property
    def seconds(self) -> float:
        """Until it holds something; 0 or less: now."""
        now = self._clock()
        self._level = min(self._level + self._rate * (now - self._since), self._rate * BURST_SECONDS)
        self._since = now
        return -self._level / self._rate if self._level <= 0 else 0.0

    def spend(self, positions: int) -> None:
        """Takes positions out, whether they are in it or not."""
        self._level -= positions


class Quotas:
    """The quotas of all callers. Of one event loop."""

    def __init__(
        self, settings: Mapping[str, QuotaConfig], metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nobody has asked anything yet."""
        self._settings, self._metrics = settings, metrics
        self._buckets = {
            name: Bucket(quota.positions_per_second, clock)
            for name, quota in settings.items()
            if quota.positions_per_second
        }
        self._names: set[str] = set()
        self._stopping = asyncio.Event()

    def share(self, caller: str) -> float:
        """Of the teacher's time, relative to that of others; 1 for who has no quota."""
        quota = self._settings.get(caller)
        return 1.0 if quota is None else quota.share

    def stop(self) -> None:
        """From now on nobody waits."""
        self._stopping.set()

    async def admit(self, name: str, positions: int, may_wait: bool) -> None:
        """Counts a request, and returns when its caller may ask it.

        Args:
            name: of the caller's token; empty if that has none.
            positions: of the request.
            may_wait: whether to slow the caller down; otherwise it is told to come again.

        Raises:
            Overloaded: its positions are spent, and it may not wait.
            Unavailable: it waited, and the teacher stops.
        """
        label = self._label(name)
        self._metrics.caller_requests.labels(label).inc()
        self._metrics.caller_positions.labels(label).inc(positions)
        bucket = self._buckets.get(name)
        if bucket is None:
            return
        if bucket.turn.locked() or bucket.seconds > 0:
            self._metrics.caller_limited.labels(label).inc()
            if not may_wait:
                self._metrics.reject(Rejection.QUOTA)
                rate = self._settings[name].positions_per_second
                raise Overloaded(f"{name} may ask {rate:g} positions a second; try again in {bucket.seconds:.1f} s")
        async with bucket.turn:
            while (seconds := bucket.seconds) > 0:
                await self._sleep(seconds)
            bucket.spend(max(1, positions))

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Unavailable("the teacher is stopping")

    def _label(self, name: str) -> str:
        """A name of the file of tokens, which may be replaced again and again; few enough for a label."""
        if name and len(self._names) < MOST_NAMES:
            self._names.add(name)
        return name if name in self._names else OTHER
