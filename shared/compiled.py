"""Functions that numba compiles: for loops over rows that no array operation says well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])

ORDER_FREE = {"reassoc", "contract", "nsz"}
"""What `compiled_sums` may do: everything but assume that no number is NaN or infinite."""


def compiled(function: F) -> F:
    """Compiles a function for the types of its first call, and holds no lock of the interpreter while it runs.

    What is compiled is kept beside the source, or in the user's cache, or in NUMBA_CACHE_DIR; where none of them can
    be written, every process compiles anew, which takes seconds.
    """
    return _compile(function, fastmath=False)


def compiled_sums(function: F) -> F:
    """As `compiled`, for sums that may be taken in another order than written, so that they use vector instructions.

    The order is chosen once, when the function is compiled: the same machine gives the same bits.
    """
    return _compile(function, fastmath=ORDER_FREE)


def _compile(function: F, fastmath: bool | set[str]) -> F:
    try:
        return cast(F, numba.njit(cache=True, nogil=True, fastmath=fastmath)(function))
    except RuntimeError:  # no place for the cache
        return cast(F, numba.njit(nogil=True, fastmath=fastmath)(function))
