"""SIGINT and SIGTERM as a wish that the loop grants between two steps, where its state is whole.

A step that does not end (the teacher is away, too) is given up after `GRACE_SECONDS`, or at a second signal; but
never within a section that changes the state.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

GRACE_SECONDS = 10.0
"""Launchers kill 30 seconds after their signal, and the checkpoint must be written by then."""
REPEATED_SECONDS = 1.0
"""A launcher passes on what the terminal has sent to all processes: within this time it is one signal."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


class StopSignals:
    """While entered, in the main thread, signals are a wish; elsewhere nothing changes.

    Attributes:
        requested: whether one has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._shields, self._is_due = 0, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:  # whoever has changed it since, knows better
                signal.signal(number, handler)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """What is done here is done whole."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if self._is_due and not self._shields:
                self._is_due = False
                raise KeyboardInterrupt

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        elif number == signal.SIGALRM or time.monotonic() - self._since > REPEATED_SECONDS:
            if not self._shields:
                raise KeyboardInterrupt
            self._is_due = True
