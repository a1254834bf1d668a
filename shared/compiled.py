"""Functions that numba compiles: for loops over rows that no array operation says well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compiles a function for the types of its first call, and holds no lock of the interpreter while it runs.

    What is compiled is kept beside the source, or in the user's cache, or in NUMBA_CACHE_DIR; where none of them can
    be written, every process compiles anew, which takes seconds.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no place for the cache
        return cast(F, numba.njit(nogil=True)(function))
