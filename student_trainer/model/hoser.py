"""HOSER: network encoder -> trip encoder -> navigator; a `Student`.

Shapes: B trips, T steps, P positions, K candidates, C most candidates of a position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from student_trainer.data.batch import Batch
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig
from student_trainer.model.device import rows
from student_trainer.model.navigator import Navigator
from student_trainer.model.road_graph import Field, RoadGraph
from student_trainer.model.roads import RoadNetworkEncoder
from student_trainer.model.student import NetworkEmbedding, StudentOutput
from student_trainer.model.trajectory import TrajectoryEncoder


class HOSER(nn.Module):
    """Parameters and buffers are named as in public HOSER weights."""

    road2zone: Tensor

    def __init__(self, config: ModelConfig, network: RoadNetwork) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("road2zone", torch.from_numpy(network.road_zone.copy()))
        self.road_network_encoder = RoadNetworkEncoder(config, network)
        self.trajectory_encoder = TrajectoryEncoder(config)
        self.navigator = Navigator(config)

    @property
    def graph(self) -> RoadGraph:
        """The road graph; tells the field of a set of roads."""
        return self.road_network_encoder.graph

    @property
    def road_dim(self) -> int:
        """d: width of a road's embedding."""
        return self.config.road_dim

    @property
    def state_dim(self) -> int:
        """2d: width of a position's state."""
        return self.config.state_dim

    def compile_parts(self) -> None:
        """Has `torch.compile` translate trip encoder and navigator."""
        self.trajectory_encoder.compile(dynamic=True)
        self.navigator.compile(dynamic=True)

    def embed_network(self, field: Field | None = None) -> NetworkEmbedding:
        """Embeds the roads of a field (on the model's device), or all, and all zones; with gradients."""
        if field is None:
            field = self.graph.whole_on(self.road2zone.device)
        road, zone = self.road_network_encoder(field)
        wide = torch.promote_types(zone.dtype, torch.float32)  # for the sums of gradients under autocast
        return NetworkEmbedding(road.to(wide), zone.to(wide), field.row)

    def forward(self, batch: Batch, network: NetworkEmbedding) -> StudentOutput:
        """Scores every candidate of every valid position of the batch."""
        zone = self.road2zone[batch.road]
        states = self.trajectory_encoder(
            network.roads(batch.road), network.zones(zone), batch.temporal, batch.distance, batch.interval, batch.length
        )
        state = states.flatten(0, 1).index_select(0, batch.padded_step)
        trip = batch.padded_step // batch.road.shape[1]
        destination_zone = rows(network.zones(self.road2zone[batch.destination]), trip)
        logits = self.navigator.scores(
            state,
            destination_zone,
            network.roads(batch.candidate_road),
            batch.candidate_distance,
            batch.candidate_angle,
            batch.layout.position,
        )
        return StudentOutput(batch.layout.pad(logits.float(), -torch.inf), state)

    def label_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to each position's true next road, float32 [P].

        Meaningless where the label is -100.
        """
        start = batch.candidate_length.cumsum(0) - batch.candidate_length
        road = batch.candidate_road[start + batch.label.clamp(min=0)]
        return self.navigator.times(output.state, network.roads(road)).float()

    def candidate_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to every candidate, float32 [K]."""
        state = output.state[batch.layout.position]
        return self.navigator.times(state, network.roads(batch.candidate_road)).float()
