"""Where the daemon is in its life: one value, which health, HTTP probes and log follow."""

from __future__ import annotations

import asyncio
import enum


class State(enum.Enum):
    """In this order, but a daemon that is stopped while it loads never serves."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    """The state, and who waits for the next one. Of one event loop."""

    def __init__(self, state: State = State.LOADING) -> None:
        self._state = state
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        """What holds now."""
        return self._state

    @property
    def is_serving(self) -> bool:
        """Whether requests are accepted."""
        return self._state is State.SERVING

    def enter(self, state: State) -> None:
        """From now on this holds; wakes all who wait."""
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def end_of(self, state: State) -> None:
        """Returns when another state holds than this one."""
        while self._state is state:
            await self._changed.wait()
