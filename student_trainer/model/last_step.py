"""HOSER on the last step of trips under way: what roads bring to its scores is known before.

Shapes: B trips, T steps, C candidates of a trip, d road width.
"""

from __future__ import annotations

from torch import Tensor, nn

from student_trainer.model.hoser import HOSER
from student_trainer.model.road_tables import RoadTables


class LastStep(nn.Module):
    """HOSER that scores the last step of trips; equals `HOSER.forward` there, but for rounding."""

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
