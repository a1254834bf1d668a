"""Ragged arrays: values back to back, with lengths or offsets beside them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.arrays import Int64


def offsets(lengths: npt.NDArray[np.integer]) -> Int64:
    """Start of every row and the end of the last: int64 [n + 1]."""
    result = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=result[1:])
    return result


def rows(lengths: npt.NDArray[np.integer]) -> Int64:
    """Row of every value: int64 [sum(lengths)], as in 0 0 0 1 1 2."""
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def positions(lengths: npt.NDArray[np.integer]) -> Int64:
    """Place of every value in its row: int64 [sum(lengths)], as in 0 1 2 0 1 0."""
    starts = offsets(lengths)
    return np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], lengths)


def slices(starts: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> Int64:
    """Indices of many slices back to back: starts[0], starts[0] + 1, ..., starts[1], ..."""
    return np.repeat(np.asarray(starts, np.int64), lengths) + positions(lengths)


def pad(values: npt.NDArray, lengths: npt.NDArray[np.integer], width: int, fill: float) -> npt.NDArray:
    """Right-pads ragged rows to [rows, width]."""
    padded = np.full((len(lengths), width), fill, values.dtype)
    padded[rows(lengths), positions(lengths)] = values
    return padded
