"""The conditional logit against a general optimiser, and its parts against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from shared import ragged
from shared.errors import TrainingError
from student_trainer.distill.conditional_logit import RIDGE, Choices, fit, hits_of, log_probs, nll_of


def drawn(seed: int, positions: int, features: int) -> tuple[Choices, np.ndarray]:
    """Choices drawn from known coefficients, some of which are none of the candidates, and these coefficients."""
    random = np.random.default_rng(seed)
    length = random.integers(1, 6, positions)
    x, true = (
        random.normal(size=(length.sum(), features)) * random.uniform(0.1, 5, features),
        random.normal(size=features),
    )
    p = np.exp(log_probs(x, length, true))
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


@settings(max_examples=20)
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


@given(st.integers(0, 10_000))
def test_probabilities_losses_and_hits_are_those_of_the_definition(seed: int) -> None:
    choices, b = drawn(seed, 20, 2)
    labelled = choices.labelled()
    np.testing.assert_allclose(nll_of(labelled, b), one_by_one(choices, b), rtol=1e-9, atol=1e-9)
    total = np.add.reduceat(np.exp(log_probs(choices.features, choices.length, b)), choices.first)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    expected = [
        float(np.argmax(labelled.features[a : a + n] @ b) == label)
        for a, n, label in zip(labelled.first, labelled.length, labelled.label, strict=True)
    ]
    assert hits_of(labelled, b).tolist() == expected


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
