"""What is minimised and what is counted, for one micro-batch: operations on the device, none of which is waited for."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from student_trainer.data.batch import Batch
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import TeacherTarget
from student_trainer.distill.loss import Distillation
from student_trainer.model.hoser import StudentOutput
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
        self._distillation = Distillation(distill)
        self._time_weight, self._scale = time_weight, scale

    def of(
        self,
        batch: Batch,
        output: StudentOutput,
        times: Tensor,
        target: TeacherTarget | None,
        positions: int | Tensor,
        labels: int | Tensor,
    ) -> Outcome:
        """The share of a micro-batch.

        Args:
            batch: the micro-batch.
            output: the student's.
            times: standardised log1p seconds to the true next road, float32 [P].
            target: the teacher's answer, if there is one.
            positions, labels: of the whole step, by which sums are divided; at least 1.
        """
        errors = losses.time_errors(times, batch.seconds, self._scale)
        sums = {
            "loss_next_road": losses.next_road_loss(output.logits, batch.label),
            "loss_time": torch.where(batch.label >= 0, errors, 0).sum(),
            "accuracy": (output.logits.argmax(-1) == batch.label).float().sum(),
        }
        loss = sums["loss_next_road"] / labels + self._time_weight * sums["loss_time"] / labels
        if target is not None:
            distilled = self._distillation.measure(batch, output, target)
            loss = loss + distilled.loss / positions
            sums |= {f"loss_{name}": total for name, total in distilled.losses.items()}
            sums |= distilled.comparison.diagnostics()
        return Outcome(loss, {name: total.detach() for name, total in {"loss": loss * positions, **sums}.items()})
