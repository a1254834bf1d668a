"""The C library's heap: what was freed goes back to the system.

Connections that come and go leave free memory all over glibc's heap, which it keeps: a daemon that holds 500 MiB grew
by 10 MiB a minute while callers were killed and stopped reading, and none of it was in use. `malloc_trim` returns whole
pages from anywhere in the heap.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

TRIM_SECONDS = 30.0
"""From one trim to the next; one takes some milliseconds on a thread of its own."""


def find_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None where the C library is another one."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


async def trim_for_ever(seconds: float = TRIM_SECONDS) -> None:
    """Trims now and then, until it is cancelled; returns at once where nothing can be trimmed."""
    trim = find_trim()
    while trim is not None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(trim, 0)
