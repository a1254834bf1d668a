"""What is minimised and what is counted, for one micro-batch: operations on the device, none of which is waited for."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from student_trainer.data.batch import Batch
from student_trainer.distill import kl as distillation
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import TeacherTarget
from student_trainer.model.time_scale import TimeScale
from student_trainer.train import loss as losses

OF_LABELS = ("loss_next_road", "loss_time")
"""Sums over positions with a label; all others are over all positions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Of a micro-batch.

    Attributes:
        loss: [], what its backward pass starts from.
        sums: [] each, without gradients, by the metric's name.
    """

    loss: Tensor
    sums: dict[str, Tensor]


class Objective:
    """The loss as the settings have it."""

    def __init__(self, distill: DistillConfig, time_weight: float, scale: TimeScale) -> None:
        self._distill, self._time_weight, self._scale = distill, time_weight, scale

    def of(
        self,
        batch: Batch,
        logits: Tensor,
        times: Tensor,
        target: TeacherTarget | None,
        positions: int | Tensor,
        labels: int | Tensor,
    ) -> Outcome:
        """The share of a micro-batch.

        Args:
            batch: the micro-batch.
            logits: float32 [P, C].
            times: standardised log1p seconds to the true next road, float32 [P].
            target: the teacher's answer, if there is one.
            positions, labels: of the whole step, by which sums are divided; at least 1.
        """
        sums = self._losses(batch, logits, times, target)
        loss = sums["loss_next_road"] / labels + self._time_weight * sums["loss_time"] / labels
        if target is not None:
            loss = loss + self._distill.weight * sums["loss_kl"] / positions
        sums["accuracy"] = (logits.argmax(-1) == batch.label).float().sum()
        if target is not None:
            diagnostics = distillation.teacher_diagnostics(logits.detach(), target, batch.label)
            for field in dataclasses.fields(diagnostics):
                values = getattr(diagnostics, field.name)
                sums[field.name] = torch.where(batch.is_real, values, 0).sum()
        return Outcome(loss, {name: total.detach() for name, total in {"loss": loss * positions, **sums}.items()})

    def _losses(self, batch: Batch, logits: Tensor, times: Tensor, target: TeacherTarget | None) -> dict[str, Tensor]:
        """Sums of each loss: of the next road and the time over its labels, of the KL over its positions."""
        errors = losses.time_errors(times, batch.seconds, self._scale)
        sums = {
            "loss_next_road": losses.next_road_loss(logits, batch.label),
            "loss_time": torch.where(batch.label >= 0, errors, 0).sum(),
        }
        if target is not None:
            config = self._distill
            kl = distillation.distillation_loss(logits, target, config.temperature, config.collisions)
            factor = config.temperature**2 if config.tau_squared else 1.0
            sums["loss_kl"] = torch.where(batch.is_real, kl, 0).sum() * factor
        return sums
