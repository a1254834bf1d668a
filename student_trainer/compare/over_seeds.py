"""Differences of two arms over seeds: exact tests by relabelling runs, and intervals for few of them.

Trips of one run tell nothing of the next seed. If the arms do not differ, the two runs of a seed may be exchanged, or,
where the seeds are not the same, any two runs: every such relabelling is as likely as the one observed (Fisher 1935).
Where only some seeds are the same, they make the arms more alike than chance does, and the test errs towards nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import scipy  # stats are imported when they are first used, which takes seconds

from shared.arrays import Float64

EXACT_SEEDS = 16
"""Up to so many pairs all signs are enumerated."""
RELABELLINGS = 2**EXACT_SEEDS
"""If there are more, so many are drawn, and the observed one is counted with them (Phipson & Smyth 2010)."""
BATCH = 2048
DIGITS = 12
"""Sums in another order differ in the bits after these."""
SMALLEST = 1e-300
"""A spread below this is none."""


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """The other arm minus the baseline, of one metric.

    Attributes:
        is_paired: runs of the same seeds were compared.
        runs: seeds of the baseline and of the other.
        differences: seed by seed, if paired.
        difference: of the arms' means.
        low, high: Student's interval of paired differences, or Welch's of two samples.
        p: exact two-sided p-value.
        p_adjusted: the same for the whole family of metrics: how often the largest of all differences, each in units of
            its own spread, is as large as this one (Westfall & Young 1993).
        smallest_p: the smallest that so many runs can give.
    """

    is_paired: bool
    runs: tuple[int, int]
    differences: tuple[float, ...]
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    smallest_p: float

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(
    baseline: Float64, other: Float64, seeds: tuple[Sequence[int | None], Sequence[int | None]], confidence: float
) -> list[OverSeeds] | None:
    """Each metric of two arms; None if an arm has one seed only: nothing can be said.

    Args:
        baseline, other: [runs, M] values of M metrics.
        seeds: of the runs of both; runs of the same seed count as one.
    """
    (before, known), (after, others) = (_by_seed(v, s) for v, s in zip((baseline, other), seeds, strict=True))
    if min(len(before), len(after)) < 2:
        return None
    if None not in known and set(known) == set(others):
        return _paired(after[[others.index(seed) for seed in known]] - before, confidence)
    return _independent(before, after, confidence)


def _by_seed(values: Float64, seeds: Sequence[int | None]) -> tuple[Float64, list[int | None]]:
    """Means over the runs of each seed; a run whose seed is not known is one of its own."""
    keys = [("unknown", row) if seed is None else ("seed", seed) for row, seed in enumerate(seeds)]
    distinct = list(dict.fromkeys(keys))
    means = [np.mean([values[row] for row, key in enumerate(keys) if key == one], axis=0) for one in distinct]
    return np.array(means), [None if kind == "unknown" else seed for kind, seed in distinct]


def _paired(differences: Float64, confidence: float) -> list[OverSeeds]:
    """Of differences [n, M] seed by seed."""
    n = len(differences)
    p, adjusted = _relabelled((differences.T,), _share_of_size, "samples", 2**n)
    mean, error = differences.mean(axis=0), differences.std(axis=0, ddof=1) / math.sqrt(n)
    half = _quantile(np.full(len(mean), n - 1.0), confidence) * error
    return [
        OverSeeds(
            True, (n, n), tuple(differences[:, m].tolist()), float(mean[m]), float(mean[m] - half[m]),
            float(mean[m] + half[m]), float(p[m]), float(adjusted[m]), smallest_p(n),
        )
        for m in range(len(mean))
    ]  # fmt: skip


def _independent(before: Float64, after: Float64, confidence: float) -> list[OverSeeds]:
    """Of values [a, M] and [b, M] of different seeds."""
    a, b = len(before), len(after)
    count = math.comb(a + b, a)
    p, adjusted = _relabelled((before.T, after.T), _share_of_spread, "independent", count)
    smallest = (2 if a == b else 1) / min(count, RELABELLINGS)
    mean = after.mean(axis=0) - before.mean(axis=0)
    parts = before.var(axis=0, ddof=1) / a, after.var(axis=0, ddof=1) / b
    error = np.sqrt(parts[0] + parts[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (parts[0] + parts[1]) ** 2 / (parts[0] ** 2 / (a - 1) + parts[1] ** 2 / (b - 1))
    half = _quantile(np.where(np.isfinite(freedom), freedom, a + b - 2.0), confidence) * error
    return [
        OverSeeds(
            False, (a, b), (), float(mean[m]), float(mean[m] - half[m]), float(mean[m] + half[m]), float(p[m]),
            float(adjusted[m]), smallest,
        )
        for m in range(len(mean))
    ]  # fmt: skip


def _quantile(freedom: Float64, confidence: float) -> Float64:
    return np.asarray(scipy.stats.t.ppf((1 + confidence) / 2, freedom))


def _share_of_size(differences: Float64, axis: int) -> Float64:
    """|sum| as a share of the root of n times the sum of squares, which no signs change: rises with Student's t."""
    n = differences.shape[axis]
    scale = np.sqrt(n * (differences**2).sum(axis=axis))
    return _rounded(np.abs(differences.sum(axis=axis)), scale)


def _share_of_spread(before: Float64, after: Float64, axis: int) -> Float64:
    """|difference of means| in units of all values' spread, which no exchange changes."""
    both = np.concatenate([before, after], axis=axis)
    return _rounded(np.abs(after.mean(axis=axis) - before.mean(axis=axis)), both.std(axis=axis))


def _rounded(sizes: Float64, scale: Float64) -> Float64:
    """In units of the scale, without the bits that the order of a sum decides; 0 where nothing varies."""
    units = np.divide(sizes, scale, out=np.zeros_like(sizes), where=scale > SMALLEST)
    return np.asarray(np.round(units, DIGITS), np.float64)


def _relabelled(
    data: tuple[Float64, ...], statistic: Callable[..., Float64], kind: Literal["samples", "independent"], count: int
) -> tuple[Float64, Float64]:
    """p-values of M metrics alone and as a family; all metrics are relabelled alike.

    Args:
        data: samples [M, n].
        count: of all relabellings.
    """
    found = scipy.stats.permutation_test(
        data, statistic, permutation_type=kind, alternative="greater", vectorized=True, axis=-1,
        n_resamples=RELABELLINGS, batch=BATCH, rng=np.random.default_rng(0),
    )  # fmt: skip
    largest = found.null_distribution.max(axis=-1, keepdims=True)
    drawn = 0 if count <= RELABELLINGS else 1  # the observed one is among all, and is added to those that are drawn
    adjusted = ((largest >= found.statistic).sum(axis=0) + drawn) / (len(largest) + drawn)
    return np.asarray(found.pvalue), np.asarray(adjusted)


def sign_flip_p(differences: Float64) -> float:
    """Exact p-value of differences [n], n >= 2: the share of all ways to sign them whose mean is as far from 0.

    If the arms do not differ, a seed's difference is as likely as its negative. Above `EXACT_SEEDS` pairs a sample.
    """
    p, _ = _relabelled((differences[None],), _share_of_size, "samples", 2 ** len(differences))
    return float(p[0])


def smallest_p(n: int) -> float:
    """The smallest p-value of n pairs: all of one sign."""
    return min(1.0, 2.0 / 2.0 ** min(n, EXACT_SEEDS))
