"""Losses by their definitions, in float64: no shared code, no vectorisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def kl(
    logits: Sequence[float], log_q: Sequence[float], tokens: Sequence[int], temperature: float, collisions: str
) -> float:
    """KL(q || p) of a position, both at a temperature, over distinct cells (marginal) or over candidates."""
    p = np.exp(np.asarray(logits, np.float64) - max(logits))
    p /= p.sum()
    q = np.exp(np.asarray(log_q, np.float64))
    if collisions == "marginal":
        cells = sorted(set(tokens))
        p = np.array([sum(p[i] for i in range(len(p)) if tokens[i] == cell) for cell in cells])
        q = np.array([q[list(tokens).index(cell)] for cell in cells])
    p, q = p ** (1 / temperature), q ** (1 / temperature)
    p, q = p / p.sum(), q / q.sum()
    return float(sum(q[i] * (np.log(q[i]) - np.log(p[i])) for i in range(len(q)) if q[i] > 0))


def cross_entropy(logits: Sequence[float], label: int, smoothing: float = 0.0) -> float:
    """-log p of a position's label, of which a share is spread evenly over its candidates."""
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - np.log(np.exp(log_p - log_p.max()).sum()) - log_p.max()
    return float((1 - smoothing) * -log_p[label] + smoothing * -log_p.mean())


def split(values: npt.ArrayLike, lengths: npt.ArrayLike) -> list[list[Any]]:
    """Flat values of candidates, by position."""
    flat, ends = np.asarray(values), np.cumsum(np.asarray(lengths))
    return [list(flat[start:end]) for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)]
