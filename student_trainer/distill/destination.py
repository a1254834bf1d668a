"""The destination-aware target: the teacher's answer, corrected for where the trip goes.

The teacher knows p(next | history), the student is asked p(next | history, destination). A conditional logit with a
handful of coefficients, fitted on positions with labels, turns one into the other:

    q'(k) ~ q(k)^a . exp(b . x_k)

where x_k says how well candidate k leads to the destination. Candidates that share a cell are told apart by x.

Shapes: P positions, K candidates of all positions, F features.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Float32, Float64, Floating, Int64
from student_trainer.data.batch import Batch
from student_trainer.distill import conditional_logit
from student_trainer.distill.conditional_logit import Choices, Fit

FEATURES = (
    "log_q", "log_shared", "distance", "angle", "detour", "log_detour", "relative_detour",
)  # fmt: skip
"""In the order of the coefficients.

log_q: the teacher's log-probability of the candidate's cell.
log_shared: log of how many candidates of the position have that cell, whose mass each of them carries.
distance: log1p of the kilometres from the candidate to the destination.
angle: radians between the candidate's direction and the destination's.
detour: kilometres that the shortest way by this candidate is longer than that by the best one.
log_detour: log1p of the detour over 50 m.
relative_detour: the detour over the best way and 100 m, at most 3.
"""
LEAST_LOG_Q = -20.0
"""Smaller ones, and what float16 calls minus infinity, count as this."""


def features_of(batch: Batch, remaining: Float32) -> Float64:
    """The features but the teacher's of a batch's candidates: float64 [K, F - 1].

    Args:
        batch: on the host.
        remaining: float32 [K], metres by the shortest way from each candidate; see `data.remaining`.
    """
    token, distance, angle = batch.candidate_token, batch.candidate_distance, batch.candidate_angle
    return features_among(batch.candidate_length.numpy(), token.numpy(), distance.numpy(), angle.numpy(), remaining)


def features_at_hand(batch: Batch) -> Float64:
    """Those of them that need no ways, the first three: float64 [K, 3]."""
    row, token = ragged.rows(batch.candidate_length.numpy()), batch.candidate_token.numpy()
    metrics = (batch.candidate_distance.numpy(), batch.candidate_angle.numpy())
    return np.stack([np.log(_shared(row, token)), *(metric.astype(np.float64) for metric in metrics)], axis=1)


def features_among(length: Int64, token: Int64, distance: Float32, angle: Float32, remaining: Float32) -> Float64:
    """The same of any candidates.

    Args:
        length: int64 [P] candidates of each position, at least 1.
        token: int64 [K] their cells.
        distance, angle: float32 [K] the navigator's metrics; see `data.batch`.
        remaining: as for `features_of`.
    """
    row, first = ragged.rows(length), ragged.offsets(length)[:-1]
    way = remaining.astype(np.float64)
    best = np.minimum.reduceat(way, first)[row]
    detour = way - best
    return np.stack(
        [
            np.log(_shared(row, token)),
            distance.astype(np.float64),
            angle.astype(np.float64),
            detour / 1000,
            np.log1p(detour / 50),
            np.minimum(detour / (best + 100), 3),
        ],
        axis=1,
    )


def _shared(row: Int64, token: Int64) -> Float64:
    """How many candidates of its position have the same cell as each: float64 [K]."""
    order = np.lexsort((token, row))
    changes = np.append(True, (np.diff(row[order]) != 0) | (np.diff(token[order]) != 0))
    group = np.cumsum(changes) - 1
    shared = np.empty(len(row))
    shared[order] = np.bincount(group)[group]
    return shared


@dataclasses.dataclass(frozen=True, eq=False)
class DestinationTarget:
    """Fitted coefficients.

    Attributes:
        coefficients: float64 [F], by `FEATURES`.
    """

    coefficients: Float64

    @classmethod
    def fitted(cls, choices: Choices) -> tuple[DestinationTarget, Fit]:
        """By maximum likelihood on positions whose features [K, F] are those of `FEATURES`.

        Raises:
            TrainingError: there is nothing to fit it on.
        """
        fit = conditional_logit.fit(choices)
        return cls(fit.coefficients), fit

    def pull(self, features: Float64) -> Float32:
        """What the destination adds to each candidate's score: float32 [K], of features [K, F - 1]."""
        return np.asarray(features @ self.coefficients[1:], np.float32)

    def scores(self, log_q: Floating, pull: Float32) -> Float32:
        """log q' but for a constant at each position: float32 [K], of the teacher's answer and `pull`."""
        return np.asarray(np.float32(self.coefficients[0]) * teachers(log_q) + pull)

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in zip(FEATURES, self.coefficients, strict=True))


def teachers(log_q: Floating) -> Float32:
    """The feature that the teacher's answer [K] is: float32 [K]."""
    return np.maximum(np.asarray(log_q, np.float32), np.float32(LEAST_LOG_Q))


def choices_of(batch: Batch, features: Float64, log_q: Floating) -> Choices:
    """A batch's positions with the teacher's feature before the given ones, for a fit."""
    every = np.concatenate([teachers(log_q)[:, None].astype(np.float64), features], axis=1)
    return Choices(every, batch.candidate_length.numpy(), batch.label.numpy())
