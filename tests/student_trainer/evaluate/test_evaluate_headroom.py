"""Stacks of a student and a teacher: what they are fitted and judged on, and what teachers of known worth are worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from shared import ragged
from shared.errors import TrainingError
from student_trainer.distill.conditional_logit import Choices, fit
from student_trainer.distill.destination import FEATURES
from student_trainer.evaluate import headroom
from student_trainer.evaluate.bootstrap import Bootstrap
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.evaluate.headroom import AT_HAND, Answers, gain, halves, judge, judge_all, measure, stack

DRAWS = BootstrapConfig(draws=500)
PER_TRIP = 20


def answers(seed: int, teacher: float, trips: int = 200, student: float = 0.6, ways: float = 0.0) -> Answers:
    """Next roads by three independent quantities: one that the student knows in part, one that the teacher does, and
    one that the detour is, each by a factor: 0 knows nothing of it, 1 all."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5, trips * PER_TRIP)
    k = int(length.sum())
    known, taught, detour, noise = rng.normal(size=(4, k)) * 1.5
    log_p = _log_softmax(known + taught + ways * detour, length)
    log_q = _log_softmax(teacher * taught + (1 - teacher) * noise, length)
    features = rng.normal(size=(k, len(FEATURES))) * 0.5
    features[:, 0], features[:, 1], features[:, FEATURES.index("detour")] = log_q, 0, detour
    best = log_p + rng.gumbel(size=k)
    chosen = ragged.positions(length)[best == np.repeat(_top(best, length), length)]
    chosen[rng.random(len(chosen)) < 0.02] = -100
    return Answers(Choices(features, length, chosen), student * known, np.repeat(np.arange(trips), PER_TRIP))


def _top(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(values, ragged.offsets(length)[:-1])


def _log_softmax(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    return np.concatenate([log_softmax(part) for part in np.split(values, ragged.offsets(length)[1:-1])])


def test_a_teacher_that_knows_the_rest_is_worth_much() -> None:
    found = measure(answers(0, teacher=1.0), 0, DRAWS, 1_000)
    gains, arms = found["gains"]["stacked"], found["arms"]
    assert gains["accuracy"]["low"] > 0.08 and gains["nll"]["high"] < -0.15
    assert gains["accuracy"]["value"] == pytest.approx(arms["stacked"]["accuracy"] - arms["student"]["accuracy"])
    assert gains["nll"]["value"] == pytest.approx(arms["stacked"]["nll"] - arms["student_scaled"]["nll"])
    coefficients = arms["stacked"]["coefficients"]
    assert coefficients["student"] == pytest.approx(1 / 0.6, rel=0.1)
    assert coefficients["teacher"] == pytest.approx(1, rel=0.1)
    assert found["ceiling"] == "stacked_features"


@pytest.mark.parametrize("seed", range(5))
def test_a_teacher_that_knows_nothing_is_worth_nothing(seed: int) -> None:
    """Though the student is far too sure of itself, and any second coefficient could seem to mend that."""
    found = measure(answers(seed, teacher=0.0, student=3.0), 0, DRAWS, 1_000)
    nll, accuracy = found["gains"]["stacked"]["nll"], found["gains"]["stacked"]["accuracy"]
    assert nll["low"] < 0 < nll["high"] or 0 < nll["value"] < 1e-3
    assert "expect nothing that 200 trips can show: " in found["sentence"] or nll["high"] < 0
    assert accuracy["low"] <= 0 and abs(accuracy["value"]) < 0.005
    assert found["gains"]["student_scaled"]["nll"]["high"] < -0.1
    assert found["gains"]["student_scaled"]["accuracy"]["value"] == pytest.approx(0, abs=1e-12)
    assert [hint.partition(",")[0] for hint in found["hints"]] == [
        "the student's probabilities are too sure or too unsure"
    ]


@pytest.mark.parametrize("seed", range(3))
def test_where_it_was_fitted_a_stack_is_no_worse_than_the_student(seed: int) -> None:
    given = answers(seed, teacher=0.3)
    for names in (("student",), ("student", "teacher"), ("student", *FEATURES)):
        every = dataclasses.replace(given, choices=given.choices.labelled(), student=_labelled(given))
        fitted = fit(every.columns(*names))
        student = judge(every.columns("student"), np.ones(1))
        assert judge(every.columns(*names), fitted.coefficients).nll.mean() <= student.nll.mean() + 1e-6


def _labelled(given: Answers) -> np.ndarray:
    kept = np.repeat(given.choices.label >= 0, given.choices.length)
    return np.asarray(given.student[kept])


def test_each_half_is_judged_by_what_the_other_has_taught() -> None:
    given = answers(1, teacher=0.5, trips=30)
    half = halves(30, seed=4)
    assert half.sum() == 15 and not np.array_equal(half, halves(30, seed=5))
    found = stack(given, half, "student", "teacher")
    columns = given.columns("student", "teacher")
    for fitted_on in (half, ~half):
        kept = np.flatnonzero(fitted_on[given.trip])
        b = minimize(_loss, np.zeros(2), (columns.take(kept),), method="BFGS").x
        others = np.flatnonzero(~fitted_on[given.trip])
        parts = _parts(columns.take(others))
        expected = [-log_softmax(x @ b)[label] if label >= 0 else np.nan for x, label in parts]
        np.testing.assert_allclose(found.nll[others], expected, atol=2e-3)
        hits = [label >= 0 and (x @ b).argmax() == label for x, label in parts]
        assert np.mean(found.hit[others] == hits) > 0.99


def _parts(choices: Choices) -> list[tuple[np.ndarray, int]]:
    return list(zip(np.split(choices.features, choices.first[1:]), choices.label.tolist(), strict=True))


def _loss(b: np.ndarray, choices: Choices) -> float:
    return -sum(float(log_softmax(x @ b)[label]) for x, label in _parts(choices) if label >= 0)


def test_ways_that_neither_knows_are_told_apart_from_the_teacher() -> None:
    found = measure(answers(2, teacher=1.0, ways=1.0), 0, DRAWS, 35_000)
    gains = {name: of["nll"]["value"] for name, of in found["gains"].items()}
    assert gains["stacked_features"] < gains["student_features"] < -0.1
    assert gains["stacked_features"] < gains["stacked"] < -0.1
    assert abs(gains["student_own"]) < 1e-3
    assert "these 35,000 labelled trips expect at most about +" in found["sentence"]
    assert any("distances, directions and detours" in hint for hint in found["hints"])


def test_few_positions_are_told() -> None:
    few, many = (answers(4, teacher=1.0, trips=trips) for trips in (5, 400))
    assert "positions with a choice, which are few" in measure(few, 0, DRAWS, 10)["sentence"]
    assert "few" not in measure(many, 0, DRAWS, 10)["sentence"]


def test_without_ways_there_are_the_stacks_that_need_none() -> None:
    given = answers(3, teacher=0.8)
    short = dataclasses.replace(
        given, choices=dataclasses.replace(given.choices, features=given.choices.features[:, :AT_HAND])
    )
    assert FEATURES[:AT_HAND] == ("log_q", "log_shared", "distance", "angle")
    found, full = measure(short, 0, DRAWS, 10), measure(given, 0, DRAWS, 10)
    assert (
        list(found["arms"]) == ["student", "teacher", "student_scaled", "student_own", "stacked"]
        and found["ceiling"] == "stacked"
    )
    assert all(found["arms"][name] == full["arms"][name] for name in found["arms"])
    assert found["sentence"].endswith(" against this student") and "detours" in full["sentence"]


def test_candidates_of_a_cell_share_the_teachers_mass() -> None:
    features = np.zeros((3, len(FEATURES)))
    features[:, 0], features[:, 1] = np.log([0.6, 0.6, 0.4]), np.log([2, 2, 1])
    choices = Choices(np.tile(features, (2, 1)), np.array([3, 3]), np.array([1, 2]))
    given = Answers(choices, np.zeros(6), np.array([0, 1]))
    teacher = judge(given.columns("teacher"), np.ones(1))
    np.testing.assert_allclose(teacher.nll, -np.log([0.3, 0.4]))
    assert teacher.hit.tolist() == [0, 1]
    assert judge(given.columns("student"), np.ones(1)).hit.tolist() == pytest.approx([1 / 3, 1 / 3])


def test_the_target_is_judged_on_trips_that_it_was_not_fitted_on() -> None:
    """It knows what teacher and ways do, not what the student does; the features alone not what the teacher does."""
    given = answers(4, teacher=1.0, ways=1.0)
    found = judge_all(given, 0)
    names = {"target": FEATURES, "features": headroom.WITHOUT_TEACHER}
    half = halves(given.trips, 0)
    for arm, columns in names.items():
        assert np.array_equal(found[arm].nll, stack(given, half, *columns).nll, equal_nan=True)
        assert found[arm].coefficients["detour"] > 0.5
    nll = {name: np.nanmean(judged.nll) for name, judged in found.items()}
    assert nll["stacked_features"] < nll["target"] < min(nll["features"], nll["teacher"]) - 0.05


def test_intervals_are_of_trips() -> None:
    """A gain that whole trips have or lack is as uncertain as the trips are few."""
    given = answers(5, teacher=0.0, trips=100)
    student = judge(given.columns("student"), np.ones(1))
    better = dataclasses.replace(student, nll=student.nll - np.repeat(np.arange(100) % 2, PER_TRIP))
    found = gain(given, better, student, Bootstrap(BootstrapConfig(), 100))["nll"]
    known = np.isfinite(student.nll)
    assert found.value == pytest.approx(-np.repeat(np.arange(100) % 2, PER_TRIP)[known].mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(100), rel=0.1)
    nothing = gain(given, student, student, Bootstrap(DRAWS, 100))
    assert all((of.value, of.low, of.high) == (0, 0, 0) for of in nothing.values())


def test_one_trip_is_too_few() -> None:
    with pytest.raises(TrainingError, match="it takes two trips"):
        measure(answers(0, teacher=0.5, trips=1), 0, DRAWS, 1)
