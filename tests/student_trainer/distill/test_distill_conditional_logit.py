"""The conditional logit against a general optimiser and the definition, written down plainly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from shared import ragged
from shared.errors import TrainingError
from student_trainer.distill import conditional_logit
from student_trainer.distill.conditional_logit import RIDGE, Choices, fit

seeds = st.integers(0, 2**32 - 1)


def simulated(seed: int, positions: int = 300, features: int = 3, scale: float = 1.0) -> tuple[Choices, np.ndarray]:
    """Choices by a conditional logit, and its coefficients; some positions have one candidate, some no label."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 6, positions)
    x = rng.normal(size=(length.sum(), features)) * scale
    b = rng.normal(size=features)
    drawn = [int(rng.choice(len(p), p=p)) for p in np.split(np.exp(plain(x, length, b)), ragged.offsets(length)[1:-1])]
    label = np.where(rng.random(positions) < 0.05, -100, np.array(drawn))
    return Choices(x, length, label), b


def plain(x: np.ndarray, length: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log p of every candidate, position by position."""
    return np.concatenate([log_softmax(part @ b) for part in np.split(x, ragged.offsets(length)[1:-1])])


def penalised(b: np.ndarray, choices: Choices) -> float:
    """What `fit` minimises: the ridge is on coefficients of features standardised around their position's mean."""
    parts = np.split(choices.features, ragged.offsets(choices.length)[1:-1])
    told = [(part, label) for part, label in zip(parts, choices.label, strict=True) if label >= 0 and len(part) > 1]
    loss = -sum(log_softmax(part @ b)[label] for part, label in told)
    centred = np.concatenate([part - part.mean(0) for part, _ in told])
    return float(loss + RIDGE * ((b * centred.std(0)) ** 2).sum())


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_it_finds_what_a_general_optimiser_finds(seed: int) -> None:
    choices, _ = simulated(seed, positions=80)
    found = fit(choices)
    expected = minimize(penalised, np.zeros(3), (choices,), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(found.coefficients, expected.x, rtol=1e-4, atol=1e-4)
    assert penalised(found.coefficients, choices) <= expected.fun + 1e-7


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_no_coefficient_can_be_moved_for_the_better(seed: int) -> None:
    choices, _ = simulated(seed, scale=10.0)
    best = fit(choices).coefficients
    least = penalised(best, choices)
    for direction in np.eye(3):
        assert all(penalised(best + step * direction, choices) > least for step in (-1e-3, 1e-3))


def test_it_recovers_what_made_the_choices() -> None:
    choices, b = simulated(1, positions=40_000)
    np.testing.assert_allclose(fit(choices).coefficients, b, atol=0.05)


@given(seeds, st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
@settings(max_examples=15, deadline=None)
def test_scale_and_shift_of_a_feature_change_its_coefficient_alone(seed: int, factor: float, shift: float) -> None:
    choices, _ = simulated(seed)
    other = choices.features.copy()
    other[:, 1] *= factor
    other[:, 2] += shift
    b, c = (fit(given).coefficients for given in (choices, dataclasses.replace(choices, features=other)))
    np.testing.assert_allclose(c * [1, factor, 1], b, rtol=1e-5, atol=1e-6)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_order_of_features_positions_and_candidates_is_free(seed: int) -> None:
    choices, _ = simulated(seed)
    rng = np.random.default_rng(seed)
    features, positions = rng.permutation(3), rng.permutation(len(choices.label))
    moved = choices.take(positions)
    moved = dataclasses.replace(moved, features=moved.features[:, features])
    np.testing.assert_allclose(fit(moved).coefficients, fit(choices).coefficients[features], rtol=1e-6, atol=1e-8)

    backwards = np.concatenate([np.arange(end - 1, start - 1, -1) for start, end in _bounds(choices)])
    label = np.where(choices.label < 0, -100, choices.length - 1 - choices.label)
    turned = Choices(choices.features[backwards], choices.length, label)
    np.testing.assert_allclose(fit(turned).coefficients, fit(choices).coefficients, rtol=1e-6, atol=1e-8)


def _bounds(choices: Choices) -> list[tuple[int, int]]:
    return [(int(first), int(first + length)) for first, length in zip(choices.first, choices.length, strict=True)]


def test_a_feature_that_tells_no_candidates_apart_has_no_coefficient() -> None:
    choices, _ = simulated(3)
    per_position = np.random.default_rng(0).normal(size=len(choices.label))[ragged.rows(choices.length)]
    constant = np.full(len(per_position), 1e9 / 3)
    more = np.column_stack([per_position, choices.features, constant])
    found = fit(dataclasses.replace(choices, features=more))
    assert found.coefficients[0] == pytest.approx(0, abs=1e-9) and found.coefficients[4] == 0
    np.testing.assert_allclose(found.coefficients[1:4], fit(choices).coefficients, rtol=1e-9)


def test_a_feature_that_decides_everything_has_a_finite_coefficient() -> None:
    length, label = np.full(50, 3), np.tile([0, 1, 2, 1, 0], 10)
    decides = (ragged.positions(length) == np.repeat(label, 3)).astype(float)
    found = fit(Choices(decides[:, None], length, label))
    assert 5 < found.coefficients[0] < 50 and 0 < found.nll < 1e-2


def test_probabilities_losses_and_hits_are_those_of_the_definition() -> None:
    choices, b = simulated(4)
    log_p = plain(choices.features, choices.length, b)
    np.testing.assert_allclose(
        conditional_logit.log_probs(choices.features, choices.length, b), log_p, rtol=1e-12, atol=1e-12
    )
    known = choices.labelled()
    assert (known.label >= 0).all() and len(known.label) == (choices.label >= 0).sum()
    parts = np.split(plain(known.features, known.length, b), ragged.offsets(known.length)[1:-1])
    expected = [-part[label] for part, label in zip(parts, known.label, strict=True)]
    np.testing.assert_allclose(conditional_logit.nll_of(known, b), expected, rtol=1e-12, atol=1e-12)
    hits = [part.argmax() == label for part, label in zip(parts, known.label, strict=True)]
    assert conditional_logit.hits_of(known, b).tolist() == hits
    assert fit(choices).nll == pytest.approx(
        np.mean([v for v, k in zip(_losses(choices), choices.length, strict=True) if k > 1 and np.isfinite(v)])
    )


def _losses(choices: Choices) -> list[float]:
    parts = np.split(plain(choices.features, choices.length, fit(choices).coefficients), choices.first[1:])
    return [-part[k] if k >= 0 else np.nan for part, k in zip(parts, choices.label, strict=True)]


def test_of_equal_candidates_the_first_is_the_likeliest() -> None:
    choices = Choices(np.zeros((6, 1)), np.array([3, 3]), np.array([0, 1]))
    assert conditional_logit.hits_of(choices, np.ones(1)).tolist() == [1, 0]


def test_parts_are_joined_in_their_order() -> None:
    choices, _ = simulated(5)
    cut = Choices.joined([choices.take(np.arange(100)), choices.take(np.arange(100, len(choices.label)))])
    assert all(np.array_equal(getattr(cut, name), getattr(choices, name)) for name in ("features", "length", "label"))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(np.ones((2, 1)), np.array([1, 1]), np.array([0, 0])), "no position has a label among several"),
        (Choices(np.arange(4.0)[:, None], np.array([2, 2]), np.array([-100, -100])), "no position has a label"),
        (Choices(np.array([[0.0], [np.nan]]), np.array([2]), np.array([0])), "is not finite"),
        (Choices(np.array([[0.0], [np.inf]]), np.array([2]), np.array([0])), "is not finite"),
        (Choices(np.repeat(np.arange(3.0), 2)[:, None], np.array([2, 2, 2]), np.zeros(3, int)), "no feature tells"),
    ],
)
def test_what_says_nothing_is_refused(choices: Choices, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(choices)


def drawn(seed: int, positions: int, features: int) -> tuple[Choices, np.ndarray]:
    """Choices drawn from known coefficients, some of which are none of the candidates, and these coefficients."""
    random = np.random.default_rng(seed)
    length = random.integers(1, 6, positions)
    x, true = (
        random.normal(size=(length.sum(), features)) * random.uniform(0.1, 5, features),
        random.normal(size=features),
    )
    p = np.exp(conditional_logit.log_probs(x, length, true))
    first = ragged.offsets(length)
    label = [random.choice(n, p=p[a : a + n] / p[a : a + n].sum()) for a, n in zip(first[:-1], length, strict=True)]
    return Choices(x, length, np.where(random.random(positions) < 0.1, -100, label)), true


def one_by_one(choices: Choices, b: np.ndarray) -> np.ndarray:
    """-log p of each labelled choice, nats."""
    found = []
    for start, length, label in zip(choices.first, choices.length, choices.label, strict=True):
        scores = choices.features[start : start + length] @ b
        if label >= 0:
            found.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label])
    return np.array(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_fit_is_the_likeliest(seed: int, features: int) -> None:
    choices, _ = drawn(seed, 120, features)
    told = choices.take(np.flatnonzero((choices.label >= 0) & (choices.length > 1)))
    row = ragged.rows(told.length)
    means = np.add.reduceat(told.features, told.first, axis=0) / told.length[:, None]
    scale = np.sqrt(((told.features - means[row]) ** 2).mean(0))

    def loss(b: np.ndarray) -> float:
        return float(one_by_one(told, b / scale).sum() + RIDGE * (b**2).sum())

    found = fit(choices)
    best = minimize(loss, np.zeros(features), method="BFGS", options={"gtol": 1e-7})
    assert loss(found.coefficients * scale) <= best.fun + 1e-7
    np.testing.assert_allclose(found.coefficients * scale, best.x, rtol=1e-3, atol=1e-3)
    assert found.positions == len(told.label)
    assert found.nll == pytest.approx(one_by_one(told, found.coefficients).mean(), rel=1e-12)


def test_known_coefficients_are_found_again() -> None:
    choices, true = drawn(0, 20_000, 3)
    spread = np.sqrt((choices.features**2).mean(0))
    np.testing.assert_allclose(fit(choices).coefficients * spread, true * spread, atol=0.15)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_probabilities_losses_and_hits_of_any_choices(seed: int) -> None:
    choices, b = drawn(seed, 20, 2)
    labelled = choices.labelled()
    np.testing.assert_allclose(conditional_logit.nll_of(labelled, b), one_by_one(choices, b), rtol=1e-9, atol=1e-9)
    total = np.add.reduceat(np.exp(conditional_logit.log_probs(choices.features, choices.length, b)), choices.first)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    expected = [
        float(np.argmax(labelled.features[a : a + n] @ b) == label)
        for a, n, label in zip(labelled.first, labelled.length, labelled.label, strict=True)
    ]
    assert conditional_logit.hits_of(labelled, b).tolist() == expected


def test_what_tells_nothing_apart_has_no_coefficient_and_what_separates_has_an_end() -> None:
    length, label = np.full(50, 2), np.zeros(50, np.int64)
    perfect = np.tile([1.0, 0.0], 50)
    same = np.repeat(np.arange(50.0), 2)
    found = fit(Choices(np.stack([perfect, same], axis=1), length, label)).coefficients
    assert found[1] == 0 and 5 < found[0] < 100


@pytest.mark.parametrize(
    ("features", "length", "label", "message"),
    [
        ([[1.0], [2.0]], [2], [-100], "no position has a label among several"),
        ([[1.0], [2.0]], [1, 1], [0, 0], "no position has a label among several"),
        ([[1.0], [np.nan]], [2], [0], "is not finite"),
        ([[3.0], [3.0]], [2], [0], "no feature tells the candidates"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    features: list[list[float]], length: list[int], label: list[int], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(Choices(np.array(features), np.array(length), np.array(label)))
