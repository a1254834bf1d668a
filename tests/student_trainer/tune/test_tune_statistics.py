"""Is a difference between few runs real? Against the definitions, and against chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.compare.over_seeds import sign_flip_p, smallest_p
from student_trainer.tune.statistics import bootstrap_interval, compare, sentence

few = st.lists(st.integers(-100, 100).map(lambda value: value / 100), min_size=2, max_size=7)


@settings(deadline=None)
@given(few)
def test_the_p_value_is_the_share_of_signs_as_extreme(values: list[float]) -> None:
    differences = np.array(values)
    observed = abs(differences.mean())
    as_extreme = [
        abs(np.mean([s * abs(v) for s, v in zip(signs, values, strict=True)])) >= observed - 1e-12
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert sign_flip_p(differences) == pytest.approx(np.mean(as_extreme))


def test_the_p_value_is_scipys_permutation_test() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, 9)
    found = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, alternative="two-sided"
    )
    assert sign_flip_p(differences) == pytest.approx(found.pvalue)


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_the_smallest_p_value_is_reached_by_differences_of_one_sign(n: int, p: float) -> None:
    assert smallest_p(n) == p
    assert sign_flip_p(np.linspace(0.1, 0.2, n)) == p


def test_many_seeds_are_sampled_and_stay_valid() -> None:
    assert sign_flip_p(np.full(40, 0.1)) == pytest.approx(2**-16, rel=0.1)
    noise = np.random.default_rng(3).normal(size=40)
    assert sign_flip_p(noise) == pytest.approx(scipy.stats.ttest_1samp(noise, 0).pvalue, abs=0.03)


def test_chance_is_called_real_no_more_often_than_promised() -> None:
    random = np.random.default_rng(1)
    claims = sum(
        compare(list(random.normal(size=6)), list(random.normal(size=6)), 200, 0.95).is_real(0.05) for _ in range(400)
    )
    assert claims <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_large_difference_is_called_real() -> None:
    vanilla = [0.80, 0.81, 0.79, 0.805, 0.80, 0.795]
    found = compare([value + 0.02 + 0.001 * i for i, value in enumerate(vanilla)], vanilla, 1000, 0.95)
    assert found.is_real(0.05) and found.p == 0.03125
    text = sentence("accuracy", found, 0.05, 100, "points", higher_is_better=True)
    assert text.startswith("accuracy: the distilled student is better, +2.25 points over 6 seeds (bootstrap +2.1")
    assert text.endswith("exact p 0.031).")
    assert "is worse" in sentence("nll", found, 0.05, 1, "nat", higher_is_better=False)


def test_three_seeds_claim_nothing() -> None:
    found = compare([0.9, 0.91, 0.92], [0.5, 0.51, 0.52], 1000, 0.95)
    assert not found.is_real(0.05)
    assert "nothing is claimed" in sentence("accuracy", found, 0.05, 100, "points", higher_is_better=True)


@settings(deadline=None)
@given(few)
def test_intervals_and_effect_by_definition(values: list[float]) -> None:
    found = compare(values, [0.0] * len(values), 500, 0.9)
    array, n = np.array(values), len(values)
    assert found.difference == pytest.approx(array.mean())
    assert array.min() - 1e-12 <= found.low <= found.high <= array.max() + 1e-12
    if array.std() > 1e-6:
        expected = scipy.stats.t.interval(0.9, n - 1, array.mean(), scipy.stats.sem(array))
        assert (found.t_low, found.t_high) == pytest.approx(expected)
        if n > 2:
            assert found.effect_size == pytest.approx(array.mean() / array.std(ddof=1) * (1 - 3 / (4 * (n - 1) - 1)))


def test_few_seeds_are_resampled_in_every_way() -> None:
    differences = np.array([0.0, 1.0, 5.0])
    means = sorted(np.mean(drawn) for drawn in itertools.product(differences, repeat=3))
    low, high = bootstrap_interval(differences, 10, 0.8, seed=0)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))
