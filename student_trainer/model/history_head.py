"""The destination-free head: what the student thinks comes next if it did not know where the trip goes.

A teacher that does not know the destination is compared with this head, not with the navigator, so that its answers
teach the trunk (road network, trip encoder) and bias nothing. Used in training only; never exported.

Shapes: P positions, K candidates of all positions, d road width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from student_trainer.data.batch import Batch
from student_trainer.model.device import rows
from student_trainer.model.student import NetworkEmbedding, StudentOutput


class Widths(Protocol):
    """What the head must know of a student, or of its settings."""

    @property
    def road_dim(self) -> int:
        """d: width of a road's embedding."""

    @property
    def state_dim(self) -> int:
        """Width of a position's state."""


class HistoryHead(nn.Module):
    """Additive attention of the trip state over the candidates' roads, as the navigator's without what depends on the
    destination: logit = v . tanh(W_q state + b + W_k road); the learned vector b stands where the destination's zone
    does there."""

    def __init__(self, student: Widths) -> None:
        super().__init__()
        dim = student.road_dim
        self.q_proj = nn.Linear(student.state_dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, 1, bias=False)

    def forward(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Logits float32 [P, C], -inf beyond a position's candidates; with gradients to trunk and head."""
        query = rows(self.q_proj(output.state), batch.layout.position)
        key = self.k_proj(network.roads(batch.candidate_road))
        logits = self.v_proj(torch.tanh(query + key)).squeeze(-1)
        return batch.layout.pad(logits.float(), -torch.inf)
