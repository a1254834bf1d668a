"""The navigator: scores the candidates of a position and estimates their travel time.

Shapes: P positions, K candidates of all positions, d road width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_trainer.model.config import ModelConfig
from student_trainer.model.device import rows


class Navigator(nn.Module):
    """Additive attention of (trip state, destination zone) over the candidates.

    logit = v . tanh(W_q [state | zone] + W_k [road | dist-proj | angle-proj]); the travel
    time is W_3 GELU([W_1 state | W_2 road]), in standardised log1p seconds.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.road_dim
        self.metric_distance_proj = nn.Linear(1, dim)
        self.metric_angle_proj = nn.Linear(1, dim)
        self.q_proj = nn.Linear(3 * dim, dim, bias=False)
        self.k_proj = nn.Linear(3 * dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, 1, bias=False)
        # Upstream's weights hold this estimator although nothing calls it.
        self.time_estimator = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.time_estimator.requires_grad_(False)
        self.time_estimator_linear_1 = nn.Linear(2 * dim, 64)
        self.time_estimator_linear_2 = nn.Linear(dim, 64)
        self.time_estimator_linear_3 = nn.Linear(128, 1)

    def scores(
        self,
        state: Tensor,
        destination_zone: Tensor,
        candidate: Tensor,
        distance: Tensor,
        angle: Tensor,
        position: Tensor,
    ) -> Tensor:
        """Logit of each candidate, [K].

        Args:
            state: [P, 2d]; destination_zone: [P, d].
            candidate: [K, d] road embeddings; distance, angle: [K] metrics.
            position: int64 [K], the position of each candidate.
        """
        query = rows(self.queries(state, destination_zone), position)
        return self.logits(query, self.road_keys(candidate), distance, angle)

    def queries(self, state: Tensor, destination_zone: Tensor) -> Tensor:
        """What a position brings to its candidates' logits, [P, d]."""
        query: Tensor = self.q_proj(torch.cat([state, destination_zone], dim=-1))
        return query

    def road_keys(self, road: Tensor) -> Tensor:
        """What a road [..., d] brings to its logit wherever it is a candidate: [..., d]."""
        # W_k splits by columns; its products with the metrics' projections are a vector each.
        on_road, on_distance, on_angle = self.k_proj.weight.chunk(3, dim=1)
        constant = on_distance @ self.metric_distance_proj.bias + on_angle @ self.metric_angle_proj.bias
        return F.linear(road, on_road, constant)

    def logits(self, query: Tensor, key: Tensor, distance: Tensor, angle: Tensor) -> Tensor:
        """Logits [K] of candidates with these queries and keys [K, d] and metrics [K]."""
        logits: Tensor = self.v_proj(torch.tanh(query + self.keys(key, distance, angle)))
        return logits.squeeze(-1)

    def keys(self, key: Tensor, distance: Tensor, angle: Tensor) -> Tensor:
        """What candidates bring to their logits, [K, d]: their `road_keys` and their metrics [K]."""
        _, on_distance, on_angle = self.k_proj.weight.chunk(3, dim=1)
        key = key + distance[:, None] * (on_distance @ self.metric_distance_proj.weight).T
        return key + angle[:, None] * (on_angle @ self.metric_angle_proj.weight).T

    def times(self, state: Tensor, road: Tensor) -> Tensor:
        """Standardised log1p seconds to enter `road` [M, d] from `state` [M, 2d]: [M]."""
        return self.times_of(self.time_estimator_linear_1(state), self.time_estimator_linear_2(road))

    def times_of(self, state: Tensor, road: Tensor) -> Tensor:
        """As `times`, of what the estimator's first layers make of the state and of the road, [M, 64] each."""
        times: Tensor = self.time_estimator_linear_3(F.gelu(torch.cat([state, road], dim=-1)))
        return times.squeeze(-1)
