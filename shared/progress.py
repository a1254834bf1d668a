"""Progress bars, and where there may be one: on a terminal, never in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import tqdm


def bar(steps: Iterable[Any] | None = None, *, shown: bool = True, **settings: Any) -> tqdm.tqdm[Any]:
    """A progress bar on stderr where that is a terminal; elsewhere, as in a file or a log of JSON, none.

    Args:
        steps: what it goes along; none: its owner updates it.
        shown: whether it is wanted at all.
        settings: of `tqdm.tqdm`, but for where and whether.
    """
    return tqdm.tqdm(steps, file=sys.stderr, disable=None if shown else True, **settings)
