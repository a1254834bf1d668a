"""What a comparison found, in plain sentences: over seeds first, over trips second, and what the two do not say.

A difference of two arms is shown
    over seeds   if the exact test and the interval over seeds say so: it will be there with other seeds;
    over trips   if that is not so, or cannot be, and test and interval over trips say so: these runs differ, and it is
                 open whether others would;
    not at all   otherwise. Where test and interval disagree the sentence says what that means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from student_trainer.compare.over_seeds import OverSeeds, smallest_p

Level = Literal["seeds", "trips", "none"]
FEW = 5
"""Differences that are told one by one."""


@dataclasses.dataclass(frozen=True)
class OverTrips:
    """A difference on the same trips, the other minus the baseline; values are means over an arm's runs.

    Attributes:
        low, high: interval of the mean difference.
        p, p_holm: of the test, and corrected for all metrics of the two arms.
        leaning: effect size of the test: above 0 where more trips, weighed by rank, have a larger value in the other.
        n: pairs, or trips of the split.
    """

    baseline: float
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str
    leaning: float
    leaning_kind: str
    n: int

    @property
    def difference(self) -> float:
        """The other minus the baseline."""
        return self.value - self.baseline

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a metric.

    Attributes:
        unit: `share` is told in points of 100.
        baseline, other: the arms.
        runs: of both.
        confidence: of the intervals.
        significance: largest p-value of a difference that is shown.
        family: metrics that the p-values are corrected for.
    """

    label: str
    unit: str
    higher_is_better: bool
    baseline: str
    other: str
    runs: tuple[int, int]
    confidence: float
    significance: float
    family: int

    def direction(self, difference: float) -> str:
        """The word for a difference."""
        return "better" if (difference > 0) == self.higher_is_better else "worse"

    def amount(self, value: float, signed: bool = True) -> str:
        """A value, or a difference, in plain units."""
        sign = "+" if signed else ""
        if self.unit == "share":
            return f"{100 * value:{sign}.2f} {'points' if signed else '%'}".replace("-", "\N{MINUS SIGN}")
        return f"{value:{sign}.3g} {self.unit}".replace("-", "\N{MINUS SIGN}")


def level(question: Question, trips: OverTrips, seeds: OverSeeds | None) -> Level:
    """What a difference is shown over."""
    if seeds is not None and seeds.p_adjusted <= question.significance and seeds.is_apart:
        return "seeds"
    return "trips" if trips.p_holm <= question.significance and trips.is_apart else "none"


def sentence(question: Question, trips: OverTrips, seeds: OverSeeds | None) -> str:
    """The finding, its size, and what it covers."""
    if not math.isfinite(trips.difference):
        return f"{question.label}: nothing to compare, for {question.other} or {question.baseline} has no value."
    if seeds is not None and level(question, trips, seeds) == "seeds":
        found = (
            f"{_is(question, seeds.difference)} over {_runs(seeds)}, {_values(question, trips, seeds.difference)}; "
            f"{_interval(question, seeds.low, seeds.high)}, exact {_p(seeds.p_adjusted)}."
        )
        against = trips.is_apart and (trips.difference > 0) != (seeds.difference > 0)
        return f"{question.label}: {found}" + (" The trips say the opposite." if against else "")
    return f"{question.label}: {_over_trips(question, trips)} {_caution(question, trips, seeds)}".strip()


def _over_trips(question: Question, trips: OverTrips) -> str:
    facts = f"{_interval(question, trips.low, trips.high)} over {trips.n:,} trips, {_p(trips.p_holm)}"
    is_small = trips.p_holm <= question.significance
    if is_small and trips.is_apart:
        return f"{_is(question, trips.difference)} on these trips, {_values(question, trips)}; {facts}."
    if is_small:
        most = question.direction(trips.leaning)
        return (
            f"{question.other} is a little {most} on most trips that differ than {question.baseline}, yet its mean is "
            f"not shown to be: {_values(question, trips)}; {facts}. A few trips with large differences decide the "
            "mean; the test weighs ranks, so it sees the many small ones."
        )
    nothing = f"no difference between {question.other} and {question.baseline} is shown, {_values(question, trips)}"
    if trips.is_apart:
        return (
            f"{nothing}; {facts}. The interval alone leaves out 0: a few trips with large differences move the mean, "
            f"or the correction for {question.family} metrics takes it away."
        )
    return f"{nothing}; {facts}."


def _caution(question: Question, trips: OverTrips, seeds: OverSeeds | None) -> str:
    """What is open."""
    if seeds is None:
        return ""  # `coverage` says it once for all verdicts
    has_claim = level(question, trips, seeds) == "trips"
    size = _over_seeds(question, seeds)
    if seeds.smallest_p > question.significance:
        if not has_claim:
            return ""
        needed = f"{_pairs_needed(question.significance)} of the same seeds are needed"
        least = f"smallest possible {_p(seeds.smallest_p)}; {needed}"
        return f"Open for other seeds: {_runs(seeds)} cannot show it ({least}); {size}."
    if not has_claim:
        return f"Nor over {_runs(seeds)}: exact {_p(seeds.p_adjusted)}, {size}."
    return f"Other seeds may not repeat it: over {_runs(seeds)} exact {_p(seeds.p_adjusted)}, {size}."


def coverage(runs: Mapping[str, tuple[int, int]]) -> str:
    """What verdicts on trips alone leave open; empty if there are none.

    Args:
        runs: of the baseline and of each other arm that has such verdicts, by its name.
    """
    if not runs:
        return ""
    told = {name: _counted(*each) for name, each in runs.items()}
    if len(set(told.values())) == 1:
        counts = next(iter(told.values()))
    else:
        counts = "; ".join(f"{name}: {each}" for name, each in told.items())
    return f"Verdicts on these trips cover chance in the trips, not in training ({counts})."


def _counted(baseline: int, other: int) -> str:
    return "one run each" if baseline == other == 1 else f"{other} and {baseline} runs"


def _over_seeds(question: Question, seeds: OverSeeds) -> str:
    """Few differences themselves, which say more than an interval of them."""
    if seeds.is_paired and len(seeds.differences) <= FEW:
        *firsts, last = (question.amount(value).removesuffix(" points") for value in seeds.differences)
        unit = " points" if question.unit == "share" else ""
        return f"seed by seed {', '.join(firsts)} and {last}{unit}"
    return f"{question.amount(seeds.difference)} ({_interval(question, seeds.low, seeds.high)})"


def _is(question: Question, difference: float) -> str:
    return f"{question.other} is {question.direction(difference)} than {question.baseline}"


def _values(question: Question, trips: OverTrips, difference: float | None = None) -> str:
    """The difference, that over trips unless another is given, and the values of both arms."""
    after, before = (question.amount(value, signed=False) for value in (trips.value, trips.baseline))
    return f"{question.amount(trips.difference if difference is None else difference)} ({after} against {before})"


def _interval(question: Question, low: float, high: float) -> str:
    if not math.isfinite(low) or not math.isfinite(high):
        return "no interval"
    ends = (question.amount(value).removesuffix(" points").removesuffix(f" {question.unit}") for value in (low, high))
    return f"{100 * question.confidence:g} % interval {' to '.join(ends)}"


def _runs(seeds: OverSeeds) -> str:
    if seeds.is_paired:
        return f"{seeds.runs[0]} seeds"
    return f"{seeds.runs[1]} and {seeds.runs[0]} runs of other seeds"


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-4 else "p < 0.0001"


def _pairs_needed(significance: float) -> int:
    """Paired seeds whose smallest p-value is small enough."""
    return next((n for n in range(2, 17) if smallest_p(n) <= significance), 17)


def reference(label: str, unit: str, name: str, value: float) -> str:
    """A value to see others against: of a floor, or of a rule."""
    plain = Question(label, unit, True, "", "", (1, 1), 0.0, 0.0, 1)
    return f"{label}, for reference: {plain.amount(value, signed=False)} ({name})."
