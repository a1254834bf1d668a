"""What is minimised and what is counted, for one micro-batch: operations on the device, none of which is waited for."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from student_trainer.data.batch import IGNORED_LABEL, Batch
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.loss import Answer, Comparison, Distillation
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.student import NetworkEmbedding, Student, StudentOutput
from student_trainer.model.time_scale import TimeScale
from student_trainer.train import loss as losses


class Divisors(NamedTuple):
    """By what a step's sums are divided, on all ranks; numbers, or float32 [] where a whole step is recorded.

    Attributes:
        positions: all of them, for the distillation terms.
        labels: weights of all labels, for the next road; 1 where there are none.
        timed: labels of labelled trips, for their times; at least 1.
        share: of the weight of the terms that fade.
    """

    positions: float | Tensor
    labels: float | Tensor
    timed: float | Tensor
    share: float | Tensor = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Of a micro-batch.

    Attributes:
        loss: [], what its backward pass starts from.
        sums: [] each, without gradients, by the metric's name.
    """

    loss: Tensor
    sums: dict[str, Tensor]


def forward(
    model: Student, head: HistoryHead | None, batch: Batch, network: NetworkEmbedding
) -> tuple[StudentOutput, Tensor]:
    """What student and head answer, and the standardised log1p seconds to each true next road, float32 [P]."""
    output = model(batch, network)
    times = model.label_times(batch, network, output)
    if head is not None:
        output = dataclasses.replace(output, history_logits=head(batch, network, output))
    return output, times


class Objective:
    """The loss as the settings have it."""

    def __init__(
        self,
        distill: DistillConfig,
        time_weight: float,
        scale: TimeScale,
        smoothing: float = 0.0,
        first_sampled: int | None = None,
    ) -> None:
        """
        Args:
            distill: the distillation terms.
            time_weight: of the travel-time loss.
            scale: of the times.
            smoothing: of the labels; see `OptimConfig.label_smoothing`.
            first_sampled: the number from which on trips are sampled ones; None if all are labelled.
        """  # fmt: skip
        self._distillation, self._sampled_labels = Distillation(distill), distill.sampled_labels
        self._time_weight, self._scale, self._smoothing = time_weight, scale, smoothing
        self._first_sampled = first_sampled

    def of(
        self, batch: Batch, output: StudentOutput, times: Tensor, answer: Answer | None, divisors: Divisors
    ) -> Outcome:
        """The share of a micro-batch.

        Args:
            batch: the micro-batch.
            output: the student's, with the head's if there is one.
            times: standardised log1p seconds to the true next road, float32 [P].
            answer: the teacher's, if there is one.
            divisors: of the whole step.
        """
        sampled = self._is_sampled(batch)
        label = batch.label if sampled is None else batch.label.masked_fill(sampled, IGNORED_LABEL)
        errors = losses.time_errors(times, batch.seconds, self._scale)
        sums = {
            "loss_next_road": losses.next_road_loss(output.logits, label, self._smoothing),
            "loss_time": torch.where(label >= 0, errors, 0).sum(),
            "accuracy": (output.logits.argmax(-1) == label).float().sum(),
        }
        loss = sums["loss_next_road"] / divisors.labels + self._time_weight * sums["loss_time"] / divisors.timed
        if sampled is not None and self._sampled_labels > 0:
            hindsight = batch.label.masked_fill(~sampled, IGNORED_LABEL)
            sums["loss_hindsight"] = losses.next_road_loss(output.logits, hindsight, self._smoothing)
            loss = loss + self._sampled_labels * sums["loss_hindsight"] / divisors.labels
        if answer is not None:
            comparison = Comparison.of(batch, output, answer, sampled)
            distilled = self._distillation.measure(comparison, divisors.share)
            loss = loss + distilled.loss / divisors.positions
            sums |= {f"loss_{name}": total for name, total in distilled.losses.items()}
            sums |= comparison.diagnostics(label)
        sums = {"loss": loss * divisors.positions, **sums}
        return Outcome(loss, {name: total.detach() for name, total in sums.items()})

    def _is_sampled(self, batch: Batch) -> Tensor | None:
        """Whether each position's trip was sampled: bool [P]; None if none ever is."""
        if self._first_sampled is None:
            return None
        return (batch.trips >= self._first_sampled).index_select(0, batch.padded_step // batch.road.shape[1])
