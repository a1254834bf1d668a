"""The distillation terms: what a teacher's answers add to the loss of a step, and what validation reports of them.

    batch, student's output, teacher's answer -> Comparison -> each term's divergence [P] -> Distilled

To add a term, give it settings in `distill.config`, and a function of a `Comparison` and its line in `terms_of` here:
the trainer adds it to the loss and to the metrics (`train/loss_NAME`), validation measures it (`val/NAME`).

Shapes: P positions, C most candidates of a position, K candidates of all positions.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.arrays import Floating
from student_trainer.data.batch import IGNORED_LABEL, Batch
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import TeacherTarget, forward_kl, kl_over, teacher_diagnostics
from student_trainer.model.device import to_device
from student_trainer.model.student import StudentOutput


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The teacher's answer to a batch's query; on the host arrays, on a device tensors.

    Attributes:
        log_q: float32 [K], over the candidates of a position, each with the whole mass of its cell.
        scores: float32 [K], those of the destination-aware target but for a constant at each position, if it is used.
    """

    log_q: Tensor
    scores: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A batch that both models have answered.

    Attributes:
        batch: on the student's device.
        output: the student's, with gradients in training.
        target: the teacher's answer beside the student's candidates.
        aware: float32 [P, C], log q' of the destination-aware target, if it is used; -inf beyond the candidates.
        is_sampled: bool [P], whether a position's trip was sampled from the teacher; None if none was.
    """

    batch: Batch
    output: StudentOutput
    target: TeacherTarget
    aware: Tensor | None
    is_sampled: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, output: StudentOutput, answer: Answer, is_sampled: Tensor | None = None) -> Comparison:
        """Puts the teacher's answer beside the candidates."""
        layout = batch.layout
        target = TeacherTarget.of(
            layout.pad(answer.log_q, -torch.inf), layout.pad(batch.candidate_token, -1), layout.exists
        )
        aware = None
        if answer.scores is not None:
            aware = masked_log_softmax(layout.pad(answer.scores, -torch.inf), layout.exists)
        return cls(batch, output, target, aware, is_sampled)

    def total(self, values: Tensor) -> Tensor:
        """The sum [] of values [P] of positions, without those that pad the batch."""
        return torch.where(self.batch.is_real, values, 0).sum()

    def diagnostics(self, label: Tensor) -> dict[str, Tensor]:
        """Sums of what both models think (`TeacherDiagnostics`), float32 [] each, by name; without gradients.

        Of the label, int64 [P], of real next roads: `IGNORED_LABEL` where a trip was sampled.
        Of a destination-aware target also `target_accuracy` and `target_nll`; its sums leave out, as accuracy does,
        no position: one whose next road is not among the candidates counts as wrong and as 0 nats.
        """
        found = teacher_diagnostics(self.output.logits.detach(), self.target, label)
        sums = {field.name: self.total(getattr(found, field.name)) for field in dataclasses.fields(found)}
        if self.aware is not None:
            log_q = self.aware
            nll = F.cross_entropy(log_q, label, ignore_index=IGNORED_LABEL, reduction="none")
            sums |= {
                "target_accuracy": self.total((log_q.argmax(-1) == label).float()),
                "target_nll": self.total(nll),
            }
        return sums


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """One way to pull the student towards the teacher.

    Attributes:
        name: of its metrics.
        weights: its factor in the loss of a step, at positions of labelled and of sampled trips.
        scale: a factor that belongs to the term itself, and is seen in its metrics of training.
        divergence: float32 [P], how far the student is from the teacher at each position.
        fades: whether the weights follow `distill.schedule`.
    """

    name: str
    weights: tuple[float, float]
    scale: float
    divergence: Callable[[Comparison], Tensor]
    fades: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """All terms of a batch, as sums over its positions: float32 [] each, by name of the term.

    Attributes:
        divergences: of each term.
        losses: the same times the terms' scales.
        loss: the losses by their weights; a step divides it by its positions.
    """

    divergences: dict[str, Tensor]
    losses: dict[str, Tensor]
    loss: Tensor


class Distillation:
    """The terms that the settings ask for."""

    def __init__(self, config: DistillConfig) -> None:
        self._terms = terms_of(config)

    def measure(self, comparison: Comparison, share: float | Tensor = 1.0) -> Distilled:
        """Compares the student's output for a batch with the teacher's answer to its query.

        Args:
            comparison: of the batch.
            share: of the weight of the terms that fade, now; float32 [] on an accelerator.
        """
        divergences, losses, weighted = {}, {}, []
        for term in self._terms:
            values = term.divergence(comparison)
            divergences[term.name] = comparison.total(values)
            losses[term.name] = divergences[term.name] * term.scale
            real, sampled = term.weights
            if real == sampled or comparison.is_sampled is None:
                pull = real * losses[term.name]
            else:
                pull = comparison.total(values * torch.where(comparison.is_sampled, sampled, real)) * term.scale
            weighted.append(pull * share if term.fades else pull)
        return Distilled(divergences, losses, functools.reduce(operator.add, weighted))


def terms_of(config: DistillConfig) -> tuple[Term, ...]:
    """The terms of the loss, at least one."""

    def kl(of: Comparison) -> Tensor:
        if of.aware is not None:
            return kl_over(of.aware, of.output.logits, of.aware > -torch.inf, config.temperature)
        return forward_kl(of.output.logits, of.target, config.temperature, config.collisions)

    def head(of: Comparison) -> Tensor:
        assert of.output.history_logits is not None, "a head has answered"
        return forward_kl(of.output.history_logits, of.target, config.temperature, config.collisions)

    scale = config.temperature**2 if config.tau_squared else 1.0
    terms = []
    if config.pulls or not config.asks:
        terms.append(Term("kl", config.weights, scale, kl, fades=True))
    if config.head > 0:
        terms.append(Term("head_kl", (config.head, config.head), scale, head))
    return tuple(terms)


def masked_log_softmax(scores: Tensor, exists: Tensor) -> Tensor:
    """Of the candidates of each position, -inf beyond them: [P, C] each."""
    scores = scores.float().masked_fill(~exists, torch.finfo(torch.float32).min)  # some pads have none at all
    return scores.log_softmax(-1).masked_fill(~exists, -torch.inf)


def answer_of(arrays: Sequence[Floating], batch: Batch) -> Answer:
    """The host's answer, the arrays of an `Answer`, on the batch's device; pads of the batch's candidates are zeros."""

    def on_device(values: Floating) -> Tensor:
        padded = np.zeros(len(batch.candidate_token), np.float32)
        padded[: len(values)] = values
        return to_device(torch.from_numpy(padded), batch.candidate_token.device)

    return Answer(*map(on_device, arrays))
