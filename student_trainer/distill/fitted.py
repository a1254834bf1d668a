"""What a run fits to the teacher's answers on its validation trips, before the first step.

    q'(k) ~ q(k)^a . exp(b . x_k)    the destination-aware target, `distill.destination`
    q^(c) ~ q(c)^s                   the calibrated answer over distinct cells: temperature scaling (Guo et al., 2017)

A teacher is surer of itself than it should be on trips that it has not seen, the more so the fewer it was trained on.

Shapes: P positions, K candidates of all positions.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Floating
from student_trainer.data.batch import Batch
from student_trainer.distill import conditional_logit
from student_trainer.distill.conditional_logit import Choices, Fit
from student_trainer.distill.destination import DestinationTarget, by_cell, teachers


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What there is of both.

    Attributes:
        sharpness: s, at least 0; 1 leaves the teacher's answers as they are.
        target: the destination-aware target, if it is used.
    """

    sharpness: float = 1.0
    target: DestinationTarget | None = None

    def calibrated(self, log_q: Floating) -> Floating:
        """log q^ but for a constant at each position, of the teacher's answer: float32 [K], or as it is if s is 1."""
        return log_q if self.sharpness == 1 else np.float32(self.sharpness) * teachers(log_q)


UNFITTED = Fitted()
"""The teacher's answers as they are."""


def fit_sharpness(choices: Choices) -> tuple[float, Fit]:
    """By maximum likelihood on choices among cells; 0, an even answer, where the teacher is of less use than none.

    Raises:
        TrainingError: there is nothing to fit it on.
    """
    fit = conditional_logit.fit(choices)
    return max(float(fit.coefficients[0]), 0.0), fit


def cells_of(batch: Batch, log_q: Floating) -> Choices:
    """A batch's positions as choices among the distinct cells of their candidates, whose only feature is log q.

    Args:
        batch: on the host.
        log_q: [K], the teacher's answer.
    """
    length, label = batch.candidate_length.numpy(), batch.label.numpy()
    row = ragged.rows(length)
    order, is_first = by_cell(row, batch.candidate_token.numpy())
    cell = np.empty(len(row), np.int64)
    cell[order] = np.cumsum(is_first) - 1
    cells = np.bincount(row[order[is_first]], minlength=len(length))
    chosen = cell[ragged.offsets(length)[:-1] + np.maximum(label, 0)] - ragged.offsets(cells)[:-1]
    features = teachers(log_q)[order[is_first], None].astype(np.float64)
    return Choices(features, cells, np.where(label < 0, label, chosen))
