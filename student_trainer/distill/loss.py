"""The distillation terms: what a teacher's answers add to the loss of a step, and what validation reports of them.

    batch, student's output, teacher's target -> Comparison -> each term's divergence [P] -> Distilled

To add a term, give it settings in `distill.config`, and a function of a `Comparison` and its line in `terms_of` here:
the trainer adds it to the loss and to the metrics (`train/loss_NAME`), validation measures it (`val/NAME`).

Shapes: P positions, C most candidates of a position.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shared.wire import ScoreReply
from student_trainer.data.batch import Batch
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import TeacherTarget, forward_kl, teacher_diagnostics
from student_trainer.model.device import to_device
from student_trainer.model.hoser import StudentOutput


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A batch that both models have answered.

    Attributes:
        batch: on the student's device.
        output: the student's, with gradients in training.
        target: the teacher's answer beside the student's candidates.
    """

    batch: Batch
    output: StudentOutput
    target: TeacherTarget

    def total(self, values: Tensor) -> Tensor:
        """The sum [] of values [P] of positions, without those that pad the batch."""
        return torch.where(self.batch.is_real, values, 0).sum()

    def diagnostics(self) -> dict[str, Tensor]:
        """Sums of what both models think (`TeacherDiagnostics`), float32 [] each, by name; without gradients."""
        found = teacher_diagnostics(self.output.logits.detach(), self.target, self.batch.label)
        return {field.name: self.total(getattr(found, field.name)) for field in dataclasses.fields(found)}


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """One way to pull the student towards the teacher.

    Attributes:
        name: of its metrics.
        weight: its factor in the loss of a step.
        scale: a factor that belongs to the term itself, and is seen in its metrics of training.
        divergence: float32 [P], how far the student is from the teacher at each position.
    """

    name: str
    weight: float
    scale: float
    divergence: Callable[[Comparison], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """All terms of a batch, as sums over its positions: float32 [] each, by name of the term.

    Attributes:
        comparison: what was compared.
        divergences: of each term.
        losses: the same times the terms' scales.
        loss: the losses by their weights; a step divides it by its positions.
    """

    comparison: Comparison
    divergences: dict[str, Tensor]
    losses: dict[str, Tensor]
    loss: Tensor


class Distillation:
    """The terms that the settings ask for."""

    def __init__(self, config: DistillConfig) -> None:
        self._terms = terms_of(config)

    def measure(self, batch: Batch, output: StudentOutput, target: TeacherTarget) -> Distilled:
        """Compares the student's output for a batch with the teacher's answer to its query."""
        comparison = Comparison(batch, output, target)
        divergences = {term.name: comparison.total(term.divergence(comparison)) for term in self._terms}
        losses = {term.name: divergences[term.name] * term.scale for term in self._terms}
        weighted = [term.weight * losses[term.name] for term in self._terms]
        return Distilled(comparison, divergences, losses, functools.reduce(operator.add, weighted))


def terms_of(config: DistillConfig) -> tuple[Term, ...]:
    """The terms of the loss, at least one."""

    def kl(of: Comparison) -> Tensor:
        return forward_kl(of.output.logits, of.target, config.temperature, config.collisions)

    return (Term("kl", config.weight, config.temperature**2 if config.tau_squared else 1.0, kl),)


def build_target(reply: ScoreReply, batch: Batch) -> TeacherTarget:
    """The reply beside the cells it is about, padded like the student's logits, on the batch's device."""
    log_probs = np.zeros(len(batch.candidate_token), np.float32)  # of candidates that pad the batch: any number
    log_probs[: len(reply.log_probs)] = reply.log_probs
    return target_of(to_device(torch.from_numpy(log_probs), batch.candidate_token.device), batch)


def target_of(log_probs: Tensor, batch: Batch) -> TeacherTarget:
    """The teacher's float32 log-probs [K] of a batch's candidates as `build_target` has them."""
    token, layout = batch.candidate_token, batch.layout
    return TeacherTarget.of(layout.pad(log_probs, -torch.inf), layout.pad(token, -1), layout.exists)
