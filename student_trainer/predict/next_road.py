"""The next road of trips under way: one step of a trip is scored, and what roads bring to that is known before.

Shapes: B trips, T steps, C candidates of a trip, d road width.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor, nn

from shared.arrays import Float32, Float64, Int64
from shared.errors import DataError
from student_trainer.model.hoser import HOSER
from student_trainer.model.road_tables import RoadTables


@dataclasses.dataclass(frozen=True, eq=False)
class NextRoad:
    """What may follow a trip: C candidates, the successors of its last road in the network's order.

    Attributes:
        roads: int64 [C]; empty at a dead end.
        probabilities: float64 [C], of which each road is the next; their sum is 1.
        seconds: float32 [C], predicted travel time from the entry of the trip's last road to that of each.
        logits: float32 [C], what the probabilities are the softmax of.
    """

    roads: Int64
    probabilities: Float64
    seconds: Float32
    logits: Float32

    @property
    def best(self) -> int | None:
        """The most probable next road, the first of equals; None at a dead end."""
        return int(self.roads[np.argmax(self.logits)]) if len(self.roads) else None


def next_road_of(roads: Int64, logits: Float32, seconds: Float32) -> NextRoad:
    """Candidates with their probabilities.

    Raises:
        DataError: the weights give logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError("the weights give logits that are not finite: they are damaged, or training diverged")
    weights = np.exp(logits.astype(np.float64) - (logits.max() if len(logits) else 0.0))
    return NextRoad(roads, weights / weights.sum(), seconds, logits)


class LastStep(nn.Module):
    """A student that scores the last step of trips; equals `HOSER.forward` there, but for rounding."""

    spatial: Tensor
    zone: Tensor
    key: Tensor
    time: Tensor

    def __init__(self, model: HOSER) -> None:
        """Embeds the network; the model's weights are shared."""
        super().__init__()
        for name, table in vars(RoadTables.of(model)).items():
            self.register_buffer(name, table)
        self.trajectory_encoder, self.navigator = model.trajectory_encoder, model.navigator

    def forward(
        self,
        road: Tensor,
        temporal: Tensor,
        distance: Tensor,
        interval: Tensor,
        length: Tensor,
        destination: Tensor,
        candidate_road: Tensor,
        candidate_distance: Tensor,
        candidate_angle: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits and standardised log1p seconds of the candidates, [B, C] each; inputs are a `PartialBatch`'s."""
        state = self.trajectory_encoder.last_states(self.spatial[road], temporal, distance, interval, length)
        columns = candidate_road.shape[1]
        candidate = candidate_road.flatten()
        query = self.navigator.queries(state, self.zone[destination]).repeat_interleave(columns, 0)
        metrics = candidate_distance.flatten(), candidate_angle.flatten()
        logits = self.navigator.logits(query, self.key[candidate], *metrics)
        of_state = self.navigator.time_estimator_linear_1(state).repeat_interleave(columns, 0)
        times = self.navigator.times_of(of_state, self.time[candidate])
        return logits.view(candidate_road.shape), times.view(candidate_road.shape)
