"""Tests of paired differences. Every p-value is two-sided."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

from shared.arrays import Float64


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """What a test of n paired differences found.

    Attributes:
        name: of the test.
        p: two-sided p-value; 1 where all differences are zero.
        effect_size: see `kind`; above 0 where the second is larger.
        kind: what the effect size is.
    """

    name: str
    p: float
    effect_size: float
    kind: str


def wilcoxon(differences: Float64) -> PairedTest:
    """Wilcoxon's signed-rank test of differences [n], zeros left out, ties given their mean rank.

    Exact up to 50 differences without ties, otherwise the normal approximation with correction for ties, as scipy
    chooses. Effect size: matched-pairs rank-biserial correlation (Kerby 2014), the share of the rank sum in favour
    minus that against, -1 to 1.
    """
    name, kind = "Wilcoxon signed-rank", "rank-biserial correlation"
    known = differences[np.isfinite(differences) & (differences != 0)]
    if len(known) == 0:
        return PairedTest(name, 1.0, 0.0, kind)
    ranks = scipy.stats.rankdata(np.abs(known))
    favour = float(ranks[known > 0].sum() - ranks[known < 0].sum()) / float(ranks.sum())
    result = scipy.stats.wilcoxon(known, method="auto")
    return PairedTest(name, float(result.pvalue), favour, kind)


def mcnemar(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> PairedTest:
    """McNemar's exact test of paired yes or no, [n] each.

    The pairs that changed are yes with probability 1/2 if nothing has: a binomial test. Effect size: the difference of
    the shares of changed pairs that became yes and that became no, -1 to 1.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    name, kind = "McNemar, exact", "share gained minus lost, of the pairs that changed"
    if gained + lost == 0:
        return PairedTest(name, 1.0, 0.0, kind)
    p = float(scipy.stats.binomtest(gained, gained + lost).pvalue)
    return PairedTest(name, p, (gained - lost) / (gained + lost), kind)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that are valid for the whole family, in the given order."""
    count = len(p_values)
    adjusted, most = [0.0] * count, 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        most = max(most, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = most
    return adjusted
