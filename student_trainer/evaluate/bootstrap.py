"""Intervals by resampling trips: what another sample of trips from the same city would have given.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13: percentile intervals. Quantities that noise only
makes larger (divergences, calibration errors) are larger still in a resample, so their draws are shifted by what they
are too large on average: the interval is that of the value at this number of trips, its floor included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse

from shared.arrays import Float64
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.evaluate.distributions import totals

BLOCK = 250
"""Draws whose weights are in memory at once."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its interval; low and high are NaN where there is none."""

    value: float
    low: float
    high: float
    n: int


class Bootstrap:
    """Draws of n trips; the same n, seed and number give the same draws, so that what is compared shares them."""

    def __init__(self, config: BootstrapConfig, n: int) -> None:
        self._config, self._n = config, n

    def weights(self) -> Iterator[Float64]:
        """How often each trip is drawn: blocks of float64 [up to `BLOCK`, n], each row sums to n."""
        random = np.random.default_rng([self._config.seed, self._n])
        left = self._config.draws
        while left:
            count = min(BLOCK, left)
            yield random.multinomial(self._n, np.full(self._n, 1 / self._n), size=count).astype(np.float64)
            left -= count

    def mean(self, values: Float64) -> Estimate:
        """The mean of values [n], NaN left out; percentile interval."""
        known = np.isfinite(values)
        return self.ratio(np.where(known, values, 0.0), known.astype(np.float64), int(known.sum()))

    def ratio(self, sums: Float64, counts: Float64, n: int) -> Estimate:
        """Sums [n] over counts [n] of what each trip has; percentile interval."""
        return self.statistic(np.stack([sums, counts], axis=1), _ratio, n)

    def median(self, values: Float64) -> Estimate:
        """The median of values [n], without NaN; percentile interval."""
        known = np.flatnonzero(np.isfinite(values))
        if len(known) == 0:
            return Estimate(np.nan, np.nan, np.nan, 0)
        order = known[np.argsort(values[known], kind="stable")]
        ordered = values[order]
        medians = []
        for weights in self.weights():
            reached = weights[:, order].cumsum(axis=1)
            total = reached[:, -1:]
            low, high = (_first_at(reached, rank) for rank in (np.floor((total + 1) / 2), np.ceil((total + 1) / 2)))
            medians.append(np.where(total[:, 0] > 0, (ordered[low] + ordered[high]) / 2, np.nan))
        return self._estimate(float(np.median(ordered)), np.concatenate(medians), len(known))

    def statistic(
        self, contributions: Float64, function: Callable[[Float64], Float64], n: int, is_distance: bool = False
    ) -> Estimate:
        """A function of sums over trips; percentile interval, shifted for what noise only makes larger.

        Args:
            contributions: [n, k] what each trip adds.
            function: sums [..., k] -> values [...].
            n: what is reported as the number of things measured.
        """
        draws = np.concatenate([function(weights @ contributions) for weights in self.weights()])
        value = float(function(contributions.sum(axis=0)))
        return self._shifted(value, draws, n) if is_distance else self._estimate(value, draws, n)

    def divergence(
        self,
        real: scipy.sparse.csr_array,
        generated: scipy.sparse.csr_array,
        function: Callable[[Float64, Float64], Float64],
    ) -> tuple[Estimate, float]:
        """A divergence of two histograms that both sides of the trips add to, and its floor.

        Args:
            real, generated: [n, bins] what each trip adds.
            function: counts [..., bins] of both -> values [...].

        Returns:
            The estimate with a shifted interval, not below 0; and what chance alone gives: the mean over draws that
            exchange the two sides of each pair with probability 1/2.
        """
        value = float(function(totals(real), totals(generated)))
        draws = np.concatenate([function(weights @ real, weights @ generated) for weights in self.weights()])
        swap = (
            np.random.default_rng([self._config.seed, self._n, 1]).integers(0, 2, (BLOCK, self._n)).astype(np.float64)
        )
        mixed = swap @ real + (1 - swap) @ generated, swap @ generated + (1 - swap) @ real
        return self._shifted(value, draws, real.shape[0]), float(np.mean(function(*mixed)))

    def _shifted(self, value: float, draws: Float64, n: int) -> Estimate:
        low, high = self._quantiles(draws)
        excess = float(np.nanmean(draws)) - value
        return Estimate(value, max(0.0, low - excess), max(0.0, high - excess), n)

    def _estimate(self, value: float, draws: Float64, n: int) -> Estimate:
        return Estimate(value, *self._quantiles(draws), n) if n else Estimate(np.nan, np.nan, np.nan, 0)

    def _quantiles(self, draws: Float64) -> tuple[float, float]:
        tail = (1 - self._config.confidence) / 2
        draws = draws[np.isfinite(draws)]
        if len(draws) == 0:
            return np.nan, np.nan
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


def _ratio(sums: Float64) -> Float64:
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _first_at(reached: Float64, rank: Float64) -> npt.NDArray[np.int64]:
    """In each row of running counts, the first place where the rank is reached."""
    return np.asarray(np.minimum((reached < rank).sum(axis=1), reached.shape[1] - 1))
