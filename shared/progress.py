"""How far a job is: a bar on a terminal, never in a file; in a log a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY_SECONDS = 30.0
"""Between two lines where no bar can be drawn."""


def bar(steps: Iterable[Any] | None = None, *, shown: bool = True, **settings: Any) -> tqdm.tqdm[Any]:
    """A progress bar on stderr where that is a terminal; elsewhere, as in a file or a log of JSON, none.

    Args:
        steps: what it goes along; none: its owner updates it.
        shown: whether it is wanted at all.
        settings: of `tqdm.tqdm`, but for where and whether.
    """
    return tqdm.tqdm(steps, file=sys.stderr, disable=None if shown else True, **settings)


def track(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items, one after another, while it is shown how many are done.

    Args:
        items: to go along.
        what: is done with them, as a line begins.
        unit: one of them, as the bar has it.
    """
    if sys.stderr.isatty():
        yield from bar(items, desc=what, unit=unit)
        return
    started = told = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= EVERY_SECONDS and number < len(items):
            told = now
            left = (now - started) / number * (len(items) - number)
            log.info("%s: %d of %d, about %.0f s left", what, number, len(items), left)
