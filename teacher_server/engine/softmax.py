"""Softmaxes over ragged segments, for the few candidates of each position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Float32, Int32, Int64


def log_softmax(logits: Float32, lengths: Int64) -> npt.NDArray[np.float16]:
    """Log-softmax of each segment in float32, rounded to float16; no segment is empty."""
    if not len(lengths):
        return np.zeros(0, np.float16)
    starts = ragged.offsets(lengths)[:-1]
    shifted = logits - np.repeat(np.maximum.reduceat(logits, starts), lengths)
    log_sum = np.log(np.add.reduceat(np.exp(shifted), starts))
    log_probs: Float32 = shifted - np.repeat(log_sum, lengths)
    return log_probs.clip(min=float(np.finfo(np.float16).min)).astype(np.float16)


def distinct_log_sum(logits: Float32, candidates: Int32, lengths: Int64) -> npt.NDArray[np.float64]:
    """Log of the sum of exponentials over each segment's distinct candidates: float64 [S]."""
    segment = ragged.rows(lengths)
    order = np.lexsort((candidates, segment))
    token = candidates[order]
    is_first = np.append(np.True_, (token[1:] != token[:-1]) | (np.diff(segment) > 0))
    values = np.where(is_first, logits[order].astype(np.float64), -np.inf)
    starts = ragged.offsets(lengths)[:-1]
    highest = np.maximum.reduceat(values, starts)
    log_sum: npt.NDArray[np.float64] = np.log(np.add.reduceat(np.exp(values - np.repeat(highest, lengths)), starts))
    return log_sum + highest
