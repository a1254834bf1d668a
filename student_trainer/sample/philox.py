"""Random numbers that depend on a seed and on what they are for, not on which were drawn before.

Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011: Parallel random numbers: as easy as 1, 2, 3), on arrays of counters.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

from shared.arrays import Float64, Int64, UInt64

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD, BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


class Purpose(enum.IntEnum):
    """What a number is drawn for: the last word of its counter."""

    ORIGIN = 0
    NEXT_ROAD = 1
    DEPARTURE = 2
    SECONDS = 3
    DESTINATION = 4


def uniform(seed: int, purpose: Purpose, walker: Int64, step: Int64) -> Float64:
    """A number in [0, 1) with 53 random bits for each walker's step: float64 [n].

    Args:
        seed: 0 to 2^64 - 1.
        purpose: of the numbers.
        walker, step: int64 [n], 0 or more; steps below 2^32.
    """
    numbers = walker.astype(np.uint64)
    counter = (numbers & WORD, numbers >> BITS, step.astype(np.uint64), np.full(len(numbers), purpose, np.uint64))
    high, low, _, _ = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return ((high << BITS | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def philox(
    counter: tuple[UInt64, UInt64, UInt64, UInt64], key: tuple[int, int]
) -> tuple[UInt64, UInt64, UInt64, UInt64]:
    """Four random words of 32 bits for each counter of four such words, all in uint64 [n]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (right >> BITS) ^ c1 ^ np.uint64(k0), right & WORD
        c2, c3 = (left >> BITS) ^ c3 ^ np.uint64(k1), left & WORD
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def pick(cumulative: npt.NDArray[np.float64], number: Float64) -> Int64:
    """The outcome that each number in [0, 1) falls on; one of weight 0 is never chosen: int64 [n].

    Args:
        cumulative: float64 [n, K] or [K] running sums of the outcomes' weights, the last above 0.
        number: float64 [n].
    """
    total = cumulative[..., -1]
    threshold = np.minimum(number * total, np.nextafter(total, 0))  # a product may round up to the total
    if cumulative.ndim == 1:
        return np.searchsorted(cumulative, threshold, "right").astype(np.int64)
    return np.asarray((cumulative <= threshold[:, None]).sum(1))
