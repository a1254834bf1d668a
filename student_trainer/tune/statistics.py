"""Is the difference between two arms real? Pairs are runs of the same seed, few of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy  # stats are imported when they are first used, which takes seconds

from shared.arrays import Float64
from student_trainer.compare.over_seeds import sign_flip_p, smallest_p

EXACT_RESAMPLES = 100_000


@dataclasses.dataclass(frozen=True)
class Arm:
    """Mean and standard deviation (n - 1) of one arm's runs."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Arm:
        """Of a value a run; the deviation of a single run is NaN."""
        array = np.asarray(values, np.float64)
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan, len(array))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Distilled minus vanilla over seeds.

    Attributes:
        distilled, vanilla: each arm.
        difference: mean of the differences.
        std: their standard deviation.
        low, high: bootstrap interval of the mean over seeds (percentiles).
        t_low, t_high: Student's interval, which does not take few seeds for all there could be.
        p: exact two-sided p-value of the sign-flip test.
        smallest_p: the smallest that so many seeds can give.
        effect_size: mean over standard deviation of the differences, corrected for few (Hedges' g_z); NaN if they
            are all the same.
    """

    distilled: Arm
    vanilla: Arm
    difference: float
    std: float
    low: float
    high: float
    t_low: float
    t_high: float
    p: float
    smallest_p: float
    effect_size: float

    def is_real(self, significance: float) -> bool:
        """Whether the test and both intervals say so."""
        apart = all(low > 0 or high < 0 for low, high in ((self.low, self.high), (self.t_low, self.t_high)))
        return self.p <= significance and apart


def compare(
    distilled: Sequence[float], vanilla: Sequence[float], draws: int, confidence: float, seed: int = 0
) -> Comparison:
    """Compares runs of the same seeds, in the same order.

    Args:
        distilled, vanilla: a value a seed, at least two.
        draws: of the bootstrap, where the resamples cannot all be enumerated.
        confidence: of the intervals.
    """
    differences = np.asarray(distilled, np.float64) - np.asarray(vanilla, np.float64)
    n = len(differences)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    low, high = bootstrap_interval(differences, draws, confidence, seed)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    correction = 1 - 3 / (4 * (n - 1) - 1) if n > 2 else math.nan  # Hedges 1981, n - 1 degrees of freedom
    return Comparison(
        distilled=Arm.of(distilled),
        vanilla=Arm.of(vanilla),
        difference=mean,
        std=std,
        low=low,
        high=high,
        t_low=mean - half,
        t_high=mean + half,
        p=sign_flip_p(differences),
        smallest_p=smallest_p(n),
        effect_size=mean / std * correction if std > 0 else math.nan,
    )


def bootstrap_interval(differences: Float64, draws: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean; of all n^n resamples where there are few."""
    n = len(differences)
    if n**n <= EXACT_RESAMPLES:
        means = differences[np.indices((n,) * n).reshape(n, -1)].mean(axis=0)
    else:
        means = differences[np.random.default_rng(seed).integers(0, n, (draws, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sentence(
    label: str, found: Comparison, significance: float, scale: float, unit: str, higher_is_better: bool
) -> str:
    """The finding in plain words.

    Args:
        label: the metric.
        scale, unit: of the numbers shown, as 100 and "points" for shares.
    """
    size = f"{found.difference * scale:+.3g} {unit}".strip()
    seeds, interval = found.distilled.n, f"{found.low * scale:+.3g} to {found.high * scale:+.3g}"
    facts = f"{size} over {seeds} seeds (bootstrap {interval}, exact p {found.p:.2g})"
    if found.is_real(significance):
        better = (found.difference > 0) == higher_is_better
        return f"{label}: the distilled student is {'better' if better else 'worse'}, {facts}."
    if found.smallest_p > significance:
        return f"{label}: {facts}. So few seeds cannot show that a difference is real; nothing is claimed."
    return f"{label}: no difference is shown, {facts}."
