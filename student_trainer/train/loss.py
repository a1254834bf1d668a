"""The supervised losses, over every valid position of every trip, in float32 whatever the model's dtype.

Shapes: P positions, C most candidates of a position. The distillation term is in `distill.loss`.
Sums are returned, so that micro-batches and validation batches add up exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from student_trainer.data.batch import IGNORED_LABEL
from student_trainer.model.time_scale import TimeScale


def next_road_loss(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over positions of -log p(next road); positions labelled -100 add nothing.

    With smoothing s it is (1 - s) times that, plus s times the mean of -log p over the position's own candidates.

    Args:
        logits: float32 [P, C], -inf beyond the candidates.
        label: int64 [P].
        smoothing: in [0, 1).
    """
    hard = F.cross_entropy(logits, label, ignore_index=IGNORED_LABEL, reduction="sum")
    if smoothing == 0:
        return hard
    exists = torch.isfinite(logits)
    log_p = logits.masked_fill(~exists, torch.finfo(logits.dtype).min).log_softmax(-1)
    even = -torch.where(exists, log_p, 0).sum(-1) / exists.sum(-1).clamp(min=1)
    return (1 - smoothing) * hard + smoothing * torch.where(label >= 0, even, 0).sum()


def time_errors(predicted: Tensor, seconds: Tensor, scale: TimeScale) -> Tensor:
    """Upstream's time error per position, |x^ - x| / max(x, 1), x = log1p seconds: float32 [P].

    Args:
        predicted: standardised log1p seconds [P].
        seconds: true seconds [P].
    """
    x = torch.log1p(seconds)
    return (predicted * scale.sigma + scale.mu - x).abs() / x.clamp(min=1)


def seconds_errors(predicted: Tensor, seconds: Tensor, scale: TimeScale) -> Tensor:
    """Absolute error in true seconds per position: float32 [P]."""
    return (torch.expm1(predicted * scale.sigma + scale.mu).clamp(min=0) - seconds).abs()
