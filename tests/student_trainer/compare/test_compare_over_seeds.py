"""Differences over seeds: by definition, against scipy, and against chance; and the sentences about them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.compare import over_seeds, verdicts
from student_trainer.compare.over_seeds import OverSeeds
from student_trainer.compare.verdicts import OverTrips, Question

FEW = st.lists(st.lists(st.integers(-50, 50), min_size=2, max_size=2), min_size=2, max_size=6)


@settings(max_examples=60)
@given(FEW)
def test_paired_p_values_are_shares_of_all_signs(rows: list[list[int]]) -> None:
    """Alone: of the mean; as a family: of the largest of all metrics in units of their own sizes."""
    differences = np.array(rows, float)
    n, size = len(rows), np.sqrt((differences**2).mean(axis=0))
    found = over_seeds.compare(np.zeros_like(differences), differences, (range(n), range(n)), 0.95)
    assert found is not None
    every = np.array(
        [(np.array(signs)[:, None] * differences).mean(axis=0) for signs in itertools.product((1, -1), repeat=n)]
    )
    units = np.abs(every) / np.where(size > 0, size, 1)
    observed = np.abs(differences.mean(axis=0)) / np.where(size > 0, size, 1)
    for m, one in enumerate(found):
        assert one.is_paired and one.runs == (n, n)
        assert one.p == pytest.approx((units[:, m] >= observed[m] - 1e-9).mean())
        assert one.p_adjusted == pytest.approx((units.max(axis=1) >= observed[m] - 1e-9).mean())
        assert one.smallest_p <= one.p <= one.p_adjusted


def test_runs_of_other_seeds_are_exchanged_freely() -> None:
    random = np.random.default_rng(0)
    before, after = random.normal(size=(4, 3)), random.normal(0.5, 2, (5, 3))
    found = over_seeds.compare(before, after, ((1, 2, 3, 4), (5, 6, 7, 8, 9)), 0.9)
    assert found is not None
    both = np.concatenate([before, after])
    splits = [np.isin(np.arange(9), chosen) for chosen in itertools.combinations(range(9), 4)]
    every = np.array([np.abs(both[~left].mean(axis=0) - both[left].mean(axis=0)) for left in splits])
    for m, one in enumerate(found):
        assert (one.is_paired, one.runs, one.smallest_p) == (False, (4, 5), 1 / math.comb(9, 4))
        assert one.p == pytest.approx((every[:, m] >= every[0, m] - 1e-12).mean())
        units = every / both.std(axis=0)
        assert one.p_adjusted == pytest.approx((units.max(axis=1) >= units[0, m] - 1e-12).mean())
        welch = scipy.stats.ttest_ind(after[:, m], before[:, m], equal_var=False).confidence_interval(0.9)
        assert (one.low, one.high) == pytest.approx((welch.low, welch.high))


def test_paired_intervals_are_students() -> None:
    values = np.random.default_rng(1).normal(size=(5, 2))
    found = over_seeds.compare(np.zeros((5, 2)), values, (range(5), range(5)), 0.95)
    assert found is not None
    for m, one in enumerate(found):
        expected = scipy.stats.t.interval(0.95, 4, values[:, m].mean(), scipy.stats.sem(values[:, m]))
        assert (one.low, one.high) == pytest.approx(expected)
        assert one.differences == pytest.approx(tuple(values[:, m]))


def test_which_runs_are_paired() -> None:
    """Same seeds in any order are; a seed that was run twice is one; one seed a side says nothing."""
    before, after = np.array([[1.0], [2.0]]), np.array([[12.0], [11.0]])
    (one,) = over_seeds.compare(before, after, ((1, 2), (2, 1)), 0.95) or []
    assert one.is_paired and one.differences == (10.0, 10.0)
    assert over_seeds.compare(before, after, ((1, 1), (1, 1)), 0.95) is None
    assert over_seeds.compare(before[:1], after, ((1,), (2, 1)), 0.95) is None
    (one,) = over_seeds.compare(before, after, ((None, None), (None, None)), 0.95) or []
    assert not one.is_paired and one.difference == 10
    (one,) = over_seeds.compare(before, after, ((1, 2), (2, 3)), 0.95) or []
    assert not one.is_paired


def test_chance_is_called_real_in_any_metric_no_more_often_than_promised() -> None:
    """200 comparisons of eight metrics over six seeds that do not differ."""
    random, claims = np.random.default_rng(2), 0
    for _ in range(200):
        sides = random.normal(size=(2, 6, 8))
        found = over_seeds.compare(sides[0], sides[1], (range(6), range(6)), 0.95) or []
        claims += any(one.p_adjusted <= 0.05 for one in found)
    assert claims <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_a_difference_in_every_seed_is_shown_beside_metrics_without_one() -> None:
    random = np.random.default_rng(3)
    differences = random.normal(size=(8, 5))
    differences[:, 0] = 10 + 0.1 * random.normal(size=8)
    found = over_seeds.compare(np.zeros((8, 5)), differences, (range(8), range(8)), 0.95) or []
    assert found[0].p_adjusted == found[0].smallest_p == 2 / 2**8
    assert all(one.p_adjusted > 0.05 for one in found[1:])


def asked(runs: tuple[int, int] = (1, 1), unit: str = "share", higher: bool = True) -> Question:
    return Question("Next road right", unit, higher, "vanilla", "distilled", runs, 0.95, 0.05, 13)


def trips(low: float, high: float, p: float, leaning: float = 0.5) -> OverTrips:
    middle = (low + high) / 2
    return OverTrips(0.5, 0.5 + middle, low, high, p / 13, p, "Wilcoxon signed-rank", leaning, "", 1000)


def seeds(n: int, low: float, high: float, p: float) -> OverSeeds:
    middle = (low + high) / 2
    return OverSeeds(True, (n, n), (middle,) * n, middle, low, high, p, p, over_seeds.smallest_p(n))


def test_one_run_each_covers_trips_alone() -> None:
    found = trips(0.01, 0.03, 1e-300)
    assert verdicts.level(asked(), found, None) == "trips"
    assert verdicts.sentence(asked(), found, None) == (
        "Next road right: distilled is better than vanilla on these trips, +2.00 points (52.00 % against 50.00 %); "
        "95 % interval +1.00 to +3.00 over 1,000 trips, p < 0.0001."
    )


def test_what_verdicts_on_trips_cover_is_said_once() -> None:
    said = "Verdicts on these trips cover chance in the trips, not in training"
    assert verdicts.coverage({}) == ""
    assert verdicts.coverage({"one": (1, 1), "other": (1, 1)}) == f"{said} (one run each)."
    assert verdicts.coverage({"one": (1, 3)}) == f"{said} (3 and 1 runs)."
    assert verdicts.coverage({"one": (1, 1), "other": (1, 3)}) == f"{said} (one: one run each; other: 3 and 1 runs)."


def test_too_few_seeds_claim_nothing_over_seeds() -> None:
    text = verdicts.sentence(asked((3, 3)), trips(0.01, 0.03, 1e-9), seeds(3, 0.005, 0.035, 0.25))
    assert verdicts.level(asked((3, 3)), trips(0.01, 0.03, 1e-9), seeds(3, 0.005, 0.035, 0.25)) == "trips"
    assert (
        "on these trips" in text and "3 seeds cannot show it (smallest possible p = 0.25; 6 of the same seeds" in text
    )


def test_enough_seeds_decide() -> None:
    question, found = asked((6, 6)), trips(0.01, 0.03, 1e-9)
    assert verdicts.level(question, found, seeds(6, 0.01, 0.03, 0.031)) == "seeds"
    assert verdicts.sentence(question, found, seeds(6, 0.01, 0.03, 0.031)) == (
        "Next road right: distilled is better than vanilla over 6 seeds, +2.00 points (52.00 % against 50.00 %); "
        "95 % interval +1.00 to +3.00, exact p = 0.031."
    )
    assert verdicts.level(question, found, seeds(6, -0.01, 0.05, 0.2)) == "trips"
    assert "Other seeds may not repeat it" in verdicts.sentence(question, found, seeds(6, -0.01, 0.05, 0.2))
    nothing = verdicts.sentence(question, trips(-0.01, 0.01, 0.8), seeds(6, -0.01, 0.05, 0.2))
    assert "no difference" in nothing and "Nor over 6 seeds" in nothing


def test_p_and_interval_that_disagree_are_explained() -> None:
    small = verdicts.sentence(asked(unit="km", higher=False), trips(-0.3, 0.1, 0.0002, leaning=-0.2), None)
    assert verdicts.level(asked(), trips(-0.3, 0.1, 0.0002), None) == "none"
    assert "distilled is a little better on most trips that differ than vanilla, yet its mean is not shown" in small
    assert "no difference" not in small and "\N{MINUS SIGN}0.3 to +0.1" in small
    apart = verdicts.sentence(asked(), trips(0.01, 0.03, 0.4), None)
    assert "The interval alone leaves out 0" in apart and "13 metrics" in apart


def test_a_metric_without_values_leaves_the_others_alone() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 1.0]])
    found = over_seeds.compare(np.zeros((3, 2)), values, (range(3), range(3)), 0.95) or []
    alone = over_seeds.compare(np.zeros((3, 1)), values[:, :1], (range(3), range(3)), 0.95) or []
    assert found[0] == alone[0] and found[0].p_adjusted == 0.25
    assert found[1].p_adjusted == 1 and not found[1].is_apart
    unknown = OverTrips(math.nan, 0.5, math.nan, math.nan, 1.0, 1.0, "Wilcoxon signed-rank", 0.0, "", 0)
    assert verdicts.level(asked(), unknown, found[1]) == "none"
    assert verdicts.sentence(asked(), unknown, found[1]) == (
        "Next road right: nothing to compare, for distilled or vanilla has no value."
    )
