"""Which of several processes live: each counts up a number of its own where all can see it.

A rank that waits for another inside an accelerator's library is not told that the other has died. So every rank has a
thread that counts, and looks how long ago the others' numbers have changed, by its own clock: those of hosts differ.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

BEAT_SECONDS = 2.0
"""Between two beats."""
LOST_SECONDS = 120.0
"""Without a beat, after which a rank counts as lost: longer than any of its own work keeps its threads from running."""
STOP_SECONDS = 5.0
"""How long the end of a thread is waited for."""


class Counters(Protocol):
    """Numbers by name, which all ranks see."""

    def add(self, name: str, amount: int, /) -> int:
        """Adds to a number, 0 at first, and returns it; raises `RuntimeError` if nobody keeps it any more."""
        ...


class Heartbeats:
    """One rank's view of the others."""

    def __init__(self, counters: Counters, rank: int, world: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Beats when told to, or from `start` on."""
        self._counters, self._rank, self._clock = counters, rank, clock
        self._seen = {other: (-1, clock()) for other in range(world) if other != rank}
        self._failure = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Beats in a thread of its own until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a process that ends while it is within a library is aborted by that."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def beat(self) -> None:
        """Counts up this rank's number, and looks at the others'."""
        try:
            self._counters.add(f"beats/{self._rank}", 1)
            for other, (count, _) in self._seen.items():
                found = self._counters.add(f"beats/{other}", 0)
                if found != count:
                    self._seen[other] = found, self._clock()
        except RuntimeError as error:
            self._failure = f"the ranks' meeting place has gone: {error}"

    def loss(self) -> str:
        """What has gone, for people; empty while all live."""
        now = self._clock()
        lost = [str(rank) for rank, (_, since) in self._seen.items() if now - since > LOST_SECONDS]
        return f"no sign of life from rank {', '.join(lost)} for {LOST_SECONDS:.0f} s" if lost else self._failure

    def _run(self) -> None:
        while not self._failure and not self._ended.is_set():
            self.beat()
            self._ended.wait(BEAT_SECONDS)
