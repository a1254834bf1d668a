"""The conditional logit: a choice among candidates whose scores are linear in a few features (McFadden, 1974).

    p(k) = exp(x_k . b) / sum over the candidates j of the position of exp(x_j . b)

Fitted by maximum likelihood with Newton's method in float64: the log-likelihood is concave, so what is found does not
depend on where the search began.

Shapes: P positions, K candidates of all positions, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared import ragged
from shared.arrays import Float64, Int64
from shared.errors import TrainingError

RIDGE = 1e-3
"""Penalty on the squared coefficients of standardised features, nats in all: keeps a feature that separates the sample
perfectly from an endless coefficient, and is nothing beside thousands of positions."""
STEPS, TOLERANCE = 50, 1e-10
"""Newton steps at most; the decrement, nats a position, below which the search ends."""
HALVINGS = 30
FEW_POSITIONS = 1_000
"""Fewer with a choice leave a handful of coefficients uncertain: fitted on 280 (20 trips) they were far off."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """Positions at which one of several candidates was chosen.

    Attributes:
        features: float64 [K, F].
        length: int64 [P] candidates per position, at least 1.
        label: int64 [P] index of the chosen one among the position's candidates; negative where it is none of them.
    """

    features: Float64
    length: Int64
    label: Int64

    @property
    def first(self) -> Int64:
        """The first candidate of each position: int64 [P]."""
        return ragged.offsets(self.length)[:-1]

    @classmethod
    def joined(cls, parts: Sequence[Choices]) -> Choices:
        """The positions of all parts, which have the same features; raises `TrainingError` if there are none."""
        if not parts:
            raise TrainingError("there are no trips, so that nothing can be fitted")
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.label for part in parts]),
        )

    def labelled(self) -> Choices:
        """The positions whose choice is among their candidates."""
        return self.take(np.flatnonzero(self.label >= 0))

    def take(self, positions: Int64) -> Choices:
        """The given positions, int64, in their order."""
        index = ragged.slices(self.first[positions], self.length[positions])
        return Choices(self.features[index], self.length[positions], self.label[positions])


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted.

    Attributes:
        coefficients: float64 [F].
        nll: mean -log p(chosen) of the positions that it was fitted on, nats.
        positions: how many these were.
    """

    coefficients: Float64
    nll: float
    positions: int


def log_probs(features: Float64, length: Int64, coefficients: Float64) -> Float64:
    """Log-probability of each candidate among those of its position: float64 [K]."""
    scores = features @ coefficients
    first = ragged.offsets(length)[:-1]
    scores = scores - np.repeat(np.maximum.reduceat(scores, first), length)
    normaliser: Float64 = np.log(np.add.reduceat(np.exp(scores), first))
    return np.asarray(scores - np.repeat(normaliser, length))


def nll_of(choices: Choices, coefficients: Float64) -> Float64:
    """-log p of each choice, nats: float64 [P]; the choices must be among the candidates."""
    scores = log_probs(choices.features, choices.length, coefficients)
    return np.asarray(-scores[choices.first + choices.label])


def hits_of(choices: Choices, coefficients: Float64) -> Float64:
    """1 where the likeliest candidate (of equal ones the first) is the chosen one, otherwise 0: float64 [P]."""
    scores = log_probs(choices.features, choices.length, coefficients)
    best = np.repeat(np.maximum.reduceat(scores, choices.first), choices.length)
    place = np.where(scores == best, ragged.positions(choices.length), np.iinfo(np.int64).max)
    return np.asarray(np.minimum.reduceat(place, choices.first) == choices.label, np.float64)


def fit(choices: Choices) -> Fit:
    """Maximum likelihood with a small ridge on the coefficients of standardised features.

    Positions whose choice is not among their candidates, and those with a single candidate, say nothing and are left
    out. A feature that is the same for all candidates of every position has coefficient 0.

    Raises:
        TrainingError: no position is left, or a feature is not finite.
    """
    told = choices.take(np.flatnonzero((choices.label >= 0) & (choices.length > 1)))
    if not len(told.label):
        raise TrainingError("no position has a label among several candidates, so that nothing can be fitted")
    if not np.isfinite(told.features).all():
        raise TrainingError("a feature of a candidate is not finite, so that nothing can be fitted")
    row, positions = ragged.rows(told.length), len(told.label)
    centred = told.features - _means(told.features, told.length)[row]
    scale = np.sqrt((centred**2).mean(0))
    varies = scale > 1e-12 * np.maximum(np.abs(told.features).max(0), 1e-300)
    if not varies.any():
        raise TrainingError("no feature tells the candidates of a position apart, so that nothing can be fitted")
    scaled = dataclasses.replace(told, features=centred[:, varies] / scale[varies])
    found = _newton(scaled)
    coefficients = np.zeros(told.features.shape[1])
    coefficients[varies] = found / scale[varies]
    return Fit(coefficients, float(nll_of(told, coefficients).mean()), positions)


def _means(features: Float64, length: Int64) -> Float64:
    sums = np.add.reduceat(features, ragged.offsets(length)[:-1], axis=0)
    return np.asarray(sums / length[:, None])


def _newton(choices: Choices) -> Float64:
    chosen = choices.first + choices.label
    row = ragged.rows(choices.length)
    b = np.zeros(choices.features.shape[1])
    loss = _penalised(choices, b)
    for _ in range(STEPS):
        p = np.exp(log_probs(choices.features, choices.length, b))
        mean = np.add.reduceat(p[:, None] * choices.features, choices.first, axis=0)  # [P, F]
        gradient = mean.sum(0) - choices.features[chosen].sum(0) + 2 * RIDGE * b
        around = choices.features - mean[row]
        hessian = (around * p[:, None]).T @ around + 2 * RIDGE * np.eye(len(b))
        direction = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ direction) / 2
        if decrement <= TOLERANCE * len(choices.label):
            break
        share = 1.0
        for _ in range(HALVINGS):
            tried = _penalised(choices, b - share * direction)
            if tried <= loss - 1e-4 * share * 2 * decrement:
                break
            share /= 2
        b, loss = b - share * direction, tried
    return b


def _penalised(choices: Choices, b: Float64) -> float:
    return float(nll_of(choices, b).sum() + RIDGE * (b**2).sum())
