"""How far a job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY_SECONDS = 30.0
"""Between two lines where no bar can be drawn."""


def track(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, one after another, while it is shown how many are done.

    Args:
        what: is done with them, as a line begins.
        unit: one of them, as the bar has it.
    """
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, desc=what, unit=unit)
        return
    started = told = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= EVERY_SECONDS and number < len(items):
            told = now
            left = (now - started) / number * (len(items) - number)
            log.info("%s: %d of %d, about %.0f s left", what, number, len(items), left)
