"""KL(teacher || student) over distinct cells, and what both models think. `distill.loss` makes a term of it.

All in float32, whatever the model's dtype.

Shapes: P positions, C most candidates of a position.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from student_trainer.distill.config import Collisions


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherTarget:
    """The teacher's answer beside the cells it is about.

    Attributes:
        log_probs: float32 [P, C] at temperature 1, over candidates (a shared cell's mass
            repeated), -inf beyond them.
        same_cell: bool [P, C, C], whether two candidates of a position share a cell.
        is_first: bool [P, C], the first candidate of each distinct cell.
    """

    log_probs: Tensor
    same_cell: Tensor
    is_first: Tensor

    @classmethod
    def of(cls, log_probs: Tensor, token: Tensor, exists: Tensor) -> TeacherTarget:
        """From padded log-probs [P, C], cell tokens [P, C] and the mask of candidates [P, C]."""
        same = (token[:, :, None] == token[:, None, :]) & exists[:, :, None] & exists[:, None, :]
        earlier = torch.ones_like(same[0]).tril(-1)
        is_first = exists & ~(same & earlier).any(-1)
        return cls(log_probs.float().masked_fill(~exists, -torch.inf), same, is_first)

    @property
    def cell_log_probs(self) -> Tensor:
        """log q over the distinct cells, at their first candidate: float32 [P, C], -inf elsewhere."""
        return self.log_probs.masked_fill(~self.is_first, -torch.inf).log_softmax(-1)

    def student_cell_log_probs(self, logits: Tensor) -> Tensor:
        """log p over the distinct cells: the student's mass (temperature 1) of each cell's candidates."""
        log_p = logits.log_softmax(-1)
        spread = log_p[:, None, :].masked_fill(~self.same_cell, -torch.inf)
        summed = torch.where(self.is_first[:, :, None], spread, torch.zeros_like(spread)).logsumexp(-1)
        return summed.masked_fill(~self.is_first, -torch.inf)


def forward_kl(logits: Tensor, target: TeacherTarget, temperature: float, collisions: Collisions) -> Tensor:
    """Forward KL(q_tau || p_tau) per position: float32 [P].

    `marginal` compares distributions over distinct cells: p_cell sums the student's
    probabilities of the cell's candidates; both sides are then raised to 1 / tau and
    renormalised. `duplicate` compares over candidates, each with its cell's whole mass.
    Without shared cells both are sum_k q (log q - log p) with q ~ q^(1/tau) and
    p = softmax(logits / tau).

    Args:
        logits: float32 [P, C], -inf beyond the candidates.
        temperature: tau > 0.
    """
    if collisions == "marginal":
        return kl_over(target.cell_log_probs, target.student_cell_log_probs(logits), target.is_first, temperature)
    return kl_over(target.log_probs, logits, target.log_probs > -torch.inf, temperature)


def kl_over(log_q: Tensor, log_p: Tensor, exists: Tensor, temperature: float) -> Tensor:
    """KL(q_tau || p_tau) per position, float32 [P], of log q and log p [P, C] over what exists, bool [P, C]."""
    hole = torch.finfo(torch.float32).min
    log_q = (log_q / temperature).masked_fill(~exists, -torch.inf).log_softmax(-1)
    log_p = (log_p / temperature).masked_fill(~exists, hole).log_softmax(-1)
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q - log_p), torch.zeros_like(q)).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats per position [P] of log-probabilities [P, C] that may hold -inf."""
    p = log_probs.exp()
    return -torch.where(p > 0, p * log_probs, torch.zeros_like(p)).sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherDiagnostics:
    """What the teacher thinks, and how far the student agrees; all float32 [P].

    Attributes:
        teacher_entropy, student_entropy: nats, over distinct cells at temperature 1.
        agreement: 1 where both put most mass on the same cell.
        teacher_accuracy: expected accuracy of the teacher guessing evenly within its best cell.
        collides: 1 where at least two candidates share a cell.
        colliding_mass: the teacher's mass of cells with more than one candidate.
    """

    teacher_entropy: Tensor
    student_entropy: Tensor
    agreement: Tensor
    teacher_accuracy: Tensor
    collides: Tensor
    colliding_mass: Tensor


@torch.no_grad()
def teacher_diagnostics(logits: Tensor, target: TeacherTarget, label: Tensor) -> TeacherDiagnostics:
    """Compares both distributions over distinct cells; label int64 [P], -100 counts as wrong."""
    log_q, log_p = target.cell_log_probs, target.student_cell_log_probs(logits)
    best = log_q.argmax(-1)
    in_best = target.same_cell.gather(1, best[:, None, None].expand(-1, 1, logits.shape[1])).squeeze(1)
    hit = in_best.gather(1, label.clamp(min=0)[:, None]).squeeze(1) & (label >= 0)
    shared = target.is_first & (target.same_cell.sum(-1) > 1)
    return TeacherDiagnostics(
        teacher_entropy=entropy(log_q),
        student_entropy=entropy(log_p),
        agreement=(best == log_p.argmax(-1)).float(),
        teacher_accuracy=hit.float() / in_best.sum(-1),
        collides=shared.any(-1).float(),
        colliding_mass=(log_q.exp() * shared).sum(-1),
    )
