"""Memory of a process that lives long: garbage is found soon, and what was freed goes back to the system.

Python looks for garbage among old objects only when a quarter of them is new since the last time, and a loaded daemon
holds 400,000 objects that live for ever: cycles that calls leave when they are cut off, with whole requests in them,
would be kept for minutes. And glibc keeps what was freed between what is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator

TRIM_SECONDS = 30.0
"""From one trim to the next; one takes some milliseconds on a thread of its own."""


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """While the block runs, what is there at its begin, when all is loaded, is not looked at for garbage.

    Afterwards it is, or libraries that look for what nobody has freed when the interpreter ends write lines about it.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts anew what is old: next to nothing
    try:
        yield
    finally:
        gc.unfreeze()


def find_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, which returns free pages to the system; None where the C library is another one."""
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
