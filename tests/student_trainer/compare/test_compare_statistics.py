"""Intervals and tests, against scipy, cases by hand and repeated sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.compare.significance_tests import holm, mcnemar, wilcoxon
from student_trainer.evaluate.bootstrap import Bootstrap
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.evaluate.distributions import jensen_shannon_nats


def bootstrap(n: int, draws: int = 1000, seed: int = 0) -> Bootstrap:
    return Bootstrap(BootstrapConfig(draws=draws, seed=seed), n)


def test_the_interval_of_a_mean_is_scipys() -> None:
    """Up to what 4,000 draws leave to chance, of a mean of skewed values with some unknown."""
    values = np.random.default_rng(0).exponential(size=300)
    found = bootstrap(300, 4000).mean(values)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert found == bootstrap(300, 4000).mean(values)
    assert found != bootstrap(300, 4000, seed=1).mean(values)
    gaps = np.append(values, [np.nan] * 10)
    assert bootstrap(310).mean(gaps).value == pytest.approx(values.mean())
    assert bootstrap(310).mean(gaps).n == 300
    nothing = bootstrap(3).mean(np.full(3, np.nan))
    assert nothing.n == 0 and math.isnan(nothing.value) and math.isnan(nothing.low)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 200])
def test_the_interval_of_a_median_is_that_of_resampled_medians(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    made = bootstrap(n)
    found = made.median(values)
    draws = [np.median(np.repeat(values, row.astype(int))) for block in made.weights() for row in block]
    assert found.value == np.median(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_an_interval_covers_as_often_as_it_says() -> None:
    """300 samples of 60: 95 % within what chance allows of 300 trials, less the bootstrap's known shortfall."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = bootstrap(60, 400).mean(random.normal(size=60))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 300 <= 0.985


def test_a_divergence_has_a_floor_that_equal_sides_stay_near() -> None:
    random = np.random.default_rng(0)
    sides = [scipy.sparse.csr_array(np.eye(20)[random.integers(0, 20, 400)]) for _ in range(2)]
    same, floor = bootstrap(400).divergence(sides[0], sides[1], jensen_shannon_nats)
    assert same.low <= same.value <= same.high
    assert 0.5 * floor < same.value < 2 * floor
    other = scipy.sparse.csr_array(np.eye(20)[random.integers(5, 20, 400)])
    apart, its_floor = bootstrap(400).divergence(sides[0], other, jensen_shannon_nats)
    assert apart.low > 3 * its_floor


@given(st.lists(st.integers(-6, 6), min_size=0, max_size=40))
@settings(max_examples=20, deadline=None)
def test_wilcoxon_is_scipys(differences: list[int]) -> None:
    values = np.array([*differences, math.nan], float)
    found = wilcoxon(values)
    known = np.array([d for d in differences if d], float)
    if len(known) == 0:
        assert (found.p, found.effect_size) == (1.0, 0.0)
        return
    assert found.p == scipy.stats.wilcoxon(known).pvalue
    ranks = scipy.stats.rankdata(np.abs(known))
    assert found.effect_size == pytest.approx((ranks * np.sign(known)).sum() / ranks.sum())
    assert wilcoxon(-values).effect_size == -found.effect_size


def test_wilcoxon_by_hand() -> None:
    """Three differences of one sign: of the 8 ways to sign the ranks, two are as far out."""
    found = wilcoxon(np.array([1.0, 2.0, 3.0]))
    assert (found.p, found.effect_size) == (0.25, 1.0)


def test_mcnemar_by_hand() -> None:
    """Of 12 pairs six changed, one of them for the worse: (1 + 6) of 64 halves on each side."""
    before = np.array([0] * 5 + [1] + [1] * 4 + [0] * 2, bool)
    after = np.array([1] * 5 + [0] + [1] * 4 + [0] * 2, bool)
    found = mcnemar(before, after)
    assert found.p == pytest.approx(2 * 7 / 64)
    assert found.effect_size == pytest.approx(4 / 6)
    assert mcnemar(before, before).p == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
