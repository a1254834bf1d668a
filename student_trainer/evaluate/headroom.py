"""Headroom: how much a teacher can still teach a student, estimated by stacking the two.

    log p(k) = a . log p_student(k) + b . log p_teacher(k) (+ c . features of k) - log of the sum over the candidates

Coefficients are fitted on one half of the trips and judged on the other, both ways round, so that every trip is judged
by numbers that have not seen it (cross-fitting; stacking: Wolpert, Neural Networks 5, 1992). What the stack is better
by than the student at its own best temperature is what the teacher knows and the student does not, as far as these
trips show it. It is an estimate and no bound: what a teacher gives to deeper layers, or on trips that nobody labelled,
can go beyond it.

Shapes: P positions, K candidates of all positions, n trips, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.arrays import Bool, Float64, Int64
from shared.errors import TrainingError
from student_trainer.distill import conditional_logit
from student_trainer.distill.conditional_logit import FEW_POSITIONS, Choices
from student_trainer.distill.destination import FEATURES
from student_trainer.evaluate.bootstrap import Bootstrap, Estimate
from student_trainer.evaluate.config import BootstrapConfig

AT_HAND = FEATURES.index("angle") + 1
"""The features that need no search for shortest ways are the first so many."""
OWN = ("distance", "angle")
"""Features that the student has itself."""
WITHOUT_TEACHER = FEATURES[FEATURES.index("distance") :]
"""Features that say nothing of a teacher's cells."""

SCALED, OWN_AGAIN, HELPED = "student_scaled", "student_own", "student_features"
"""Stacks without a teacher: the student alone, which is its best temperature; with its own features; with those
`WITHOUT_TEACHER`."""
STACKED, INFORMED = "stacked", "stacked_features"
"""Stacks of student and teacher; with all features."""
TARGET, FEATURES_ALONE = "target", "features"
"""Stacks without the student: what a destination-aware target is, and its features without the teacher."""

WORTH_TELLING = 1e-3
"""Nats below which nobody needs a hint, however certain they are."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a student and a teacher say at the positions of some trips.

    Attributes:
        choices: features float64 [K, F] are the first F of `FEATURES`: all, or the `AT_HAND` ones.
        student: float64 [K], its logits.
        trip: int64 [P], which trip a position is of, 0 to n - 1.
    """

    choices: Choices
    student: Float64
    trip: Int64

    @property
    def trips(self) -> int:
        """n."""
        return int(self.trip.max()) + 1

    @property
    def has_ways(self) -> bool:
        """Whether all features are known."""
        return bool(self.choices.features.shape[1] == len(FEATURES))

    def columns(self, *names: str) -> Choices:
        """The same choices with other features: `student`, `teacher` or names of `FEATURES`."""
        return dataclasses.replace(self.choices, features=np.stack([self._column(name) for name in names], axis=1))

    def _column(self, name: str) -> Float64:
        known = self.choices.features
        if name == "student":  # centred on the position's best, so that the numbers are small
            top = np.maximum.reduceat(self.student, self.choices.first)
            return np.asarray(self.student - np.repeat(top, self.choices.length))
        if name == "teacher":  # candidates of a cell share its mass evenly
            return np.asarray(known[:, FEATURES.index("log_q")] - known[:, FEATURES.index("log_shared")])
        return np.asarray(known[:, FEATURES.index(name)])


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """How right a distribution over the candidates is.

    Attributes:
        hit: float64 [P], 1 where the likeliest candidate is the chosen one; of several that are equally likely, their
            share. 0 where the chosen one is no candidate.
        nll: float64 [P], nats; NaN where the chosen one is no candidate.
        coefficients: of a stack, by name; means of both halves.
    """

    hit: Float64
    nll: Float64
    coefficients: Mapping[str, float] = dataclasses.field(default_factory=dict)


def judge(choices: Choices, coefficients: Float64) -> Judged:
    """A conditional logit with given coefficients."""
    log_p = conditional_logit.log_probs(choices.features, choices.length, coefficients)
    is_best = log_p == np.repeat(np.maximum.reduceat(log_p, choices.first), choices.length)
    is_known = choices.label >= 0
    chosen = choices.first + np.where(is_known, choices.label, 0)
    hit = (is_known & is_best[chosen]) / np.add.reduceat(is_best.astype(np.float64), choices.first)
    return Judged(hit, np.where(is_known, -log_p[chosen], np.nan))


def stack(answers: Answers, half: Bool, *names: str) -> Judged:
    """Fits coefficients of the named columns on each half of the trips, and judges them on the other.

    Args:
        answers: of both models.
        half: bool [n], which trips are one half.
        names: see `Answers.columns`.

    Raises:
        TrainingError: a half has nothing to fit on.
    """
    choices = answers.columns(*names)
    hit, nll = np.empty(len(choices.label)), np.empty(len(choices.label))
    fitted = []
    for is_fitted_on in (half[answers.trip], ~half[answers.trip]):
        fit = conditional_logit.fit(choices.take(np.flatnonzero(is_fitted_on)))
        found = judge(choices.take(np.flatnonzero(~is_fitted_on)), fit.coefficients)
        hit[~is_fitted_on], nll[~is_fitted_on] = found.hit, found.nll
        fitted.append(fit.coefficients)
    return Judged(hit, nll, dict(zip(names, np.mean(fitted, axis=0).tolist(), strict=True)))


def halves(trips: int, seed: int) -> Bool:
    """A random half of the trips: bool [n]."""
    chosen = np.zeros(trips, bool)
    chosen[np.random.default_rng(seed).permutation(trips)[: trips // 2]] = True
    return chosen


def judge_all(answers: Answers, seed: int) -> dict[str, Judged]:
    """Each model alone, and every stack that the known features allow.

    Args:
        answers: of both models.
        seed: of the halves.

    Raises:
        TrainingError: there are fewer than two trips, or a half of them leaves no choice.
    """
    if answers.trips < 2:
        raise TrainingError("headroom is fitted on half of the trips and judged on the other: it takes two trips")
    half, one = halves(answers.trips, seed), np.ones(1)
    found = {name: judge(answers.columns(name), one) for name in ("student", "teacher")}
    found[SCALED] = stack(answers, half, "student")
    found[OWN_AGAIN] = stack(answers, half, "student", *OWN)
    found[STACKED] = stack(answers, half, "student", "teacher")
    if answers.has_ways:
        found[TARGET] = stack(answers, half, *FEATURES)
        found[FEATURES_ALONE] = stack(answers, half, *WITHOUT_TEACHER)
        found[HELPED] = stack(answers, half, "student", *WITHOUT_TEACHER)
        found[INFORMED] = stack(answers, half, "student", *FEATURES)
    return found


def gain(answers: Answers, judged: Judged, baseline: Judged, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """What a stack is better by than a baseline: `accuracy`, a share, and `nll`, nats; intervals over trips.

    The halves and their coefficients stay as they are in every draw.
    """
    found = {}
    for name, difference in {"accuracy": judged.hit - baseline.hit, "nll": judged.nll - baseline.nll}.items():
        is_known = np.isfinite(difference)
        sums = np.bincount(answers.trip[is_known], difference[is_known], answers.trips).astype(np.float64)
        counts = np.bincount(answers.trip[is_known], minlength=answers.trips).astype(np.float64)
        found[name] = bootstrap.ratio(sums, counts, int(is_known.sum()))
    return found


def measure(answers: Answers, seed: int, resampling: BootstrapConfig, labelled_trips: int) -> dict[str, Any]:
    """The headroom that the answers show, as JSON.

    Args:
        answers, seed: see `judge_all`.
        resampling: of trips, for intervals.
        labelled_trips: that the student was trained on.

    Returns:
        `arms`: accuracy and nll of each model alone and of each stack, of a stack also its coefficients; `gains`: what
        each stack is better by than the student at its best temperature, and that than the student, with intervals;
        `ceiling`: the name of the stack that knows most; `sentence` and `hints` for people.

    Raises:
        TrainingError: see `judge_all`.
    """
    judged = judge_all(answers, seed)
    bootstrap = Bootstrap(resampling, answers.trips)
    gains = {SCALED: gain(answers, judged[SCALED], judged["student"], bootstrap)}
    stacks = [name for name in (OWN_AGAIN, STACKED, HELPED, INFORMED) if name in judged]
    gains |= {name: gain(answers, judged[name], judged[SCALED], bootstrap) for name in stacks}
    ceiling = INFORMED if answers.has_ways else STACKED
    return {
        "trips": answers.trips,
        "positions": len(answers.trip),
        "labelled_trips": labelled_trips,
        "confidence": resampling.confidence,
        "arms": {name: _values(arm) for name, arm in judged.items()},
        "gains": {name: {key: _interval(found) for key, found in of.items()} for name, of in gains.items()},
        "ceiling": ceiling,
        "sentence": sentence(gains, ceiling, labelled_trips, answers.trips) + _reserve(answers),
        "hints": hints(gains),
    }


def left(found: Mapping[str, Any]) -> dict[str, float]:
    """What the teacher of a run could still teach, of what `measure` found: accuracy, a share, and nll, nats."""
    return {name: float(found["gains"][found["ceiling"]][name]["value"]) for name in ("accuracy", "nll")}


def sentence(gains: Mapping[str, Mapping[str, Estimate]], ceiling: str, labelled_trips: int, trips: int) -> str:
    """What to expect of the teacher, in one line; `trips` are those that it was measured on."""
    most = gains[ceiling]
    is_shown = most["nll"].high < 0 or most["accuracy"].low > 0
    expected = "at most about" if is_shown else f"nothing that {trips:,} trips can show:"
    said = (
        f"with this teacher and these {labelled_trips:,} labelled trips expect {expected} {_told(most)} "
        "against this student"
    )
    if ceiling == INFORMED:
        answers, ways = (_short(gains[name]) for name in (STACKED, HELPED))
        said += f"; the teacher's answers alone give {answers}, distances, directions and detours without them {ways}"
    return said


def _reserve(answers: Answers) -> str:
    """What to say where the stacks are fitted on so little that their intervals, which do not cover that, mislead."""
    positions = int((answers.choices.length > 1).sum())
    if positions >= 2 * FEW_POSITIONS:  # a half of the trips fits
        return ""
    return f"; measured on {positions} positions with a choice, which are few: more trips may say otherwise"


def hints(gains: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """What the student could know without a teacher, where it is more than noise."""
    told = {
        SCALED: "the student's probabilities are too sure or too unsure, which a temperature mends",
        OWN_AGAIN: "the student leaves something unused in the distance and direction that it is shown",
        HELPED: "the student does not know all that distances, directions and detours to the destination tell",
    }
    return [f"{words}: {_told(gains[name])}" for name, words in told.items() if name in gains and _is_real(gains[name])]


def _is_real(found: Mapping[str, Estimate]) -> bool:
    return found["nll"].high < 0 and found["nll"].value <= -WORTH_TELLING


def _told(found: Mapping[str, Estimate]) -> str:
    points, nats = found["accuracy"], found["nll"]
    return (
        f"{100 * points.value:+.1f} points ({100 * points.low:.1f} to {100 * points.high:.1f}) and "
        f"{nats.value:+.3f} nats ({nats.low:.3f} to {nats.high:.3f})"
    ).replace("-", "\N{MINUS SIGN}")


def _short(found: Mapping[str, Estimate]) -> str:
    told = f"{100 * found['accuracy'].value:+.1f} points and {found['nll'].value:+.3f} nats"
    return told.replace("-", "\N{MINUS SIGN}")


def _values(arm: Judged) -> dict[str, Any]:
    values: dict[str, Any] = {"accuracy": float(arm.hit.mean()), "nll": float(np.nanmean(arm.nll))}
    return values | ({"coefficients": dict(arm.coefficients)} if arm.coefficients else {})


def _interval(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
