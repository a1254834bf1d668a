"""HOSER: network encoder -> trip encoder -> navigator.

Shapes: B trips, T steps, P positions, K candidates, C most candidates of a position.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from student_trainer.data.batch import Batch
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig
from student_trainer.model.device import rows
from student_trainer.model.navigator import Navigator
from student_trainer.model.road_graph import Field, RoadGraph
from student_trainer.model.roads import RoadNetworkEncoder
from student_trainer.model.trajectory import TrajectoryEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkEmbedding:
    """Embeddings of the roads of a field, [M, d], and of all zones, [Z, d].

    Attributes:
        row: int64 [N], each road's row of `road`; None where it is the road's number; see `Field`.
    """

    road: Tensor
    zone: Tensor
    row: Tensor | None

    def roads(self, ids: Tensor) -> Tensor:
        """Embeddings of roads, [..., d]; a road outside the field is an `IndexError`."""
        row = ids.flatten()
        return rows(self.road, row if self.row is None else self.row[row]).view(*ids.shape, -1)

    def zones(self, ids: Tensor) -> Tensor:
        """Embeddings of zones, [..., d]."""
        return rows(self.zone, ids.flatten()).view(*ids.shape, -1)

    def detach(self) -> NetworkEmbedding:
        """The same values as leaves that collect gradients of their own."""
        return NetworkEmbedding(self.road.detach().requires_grad_(), self.zone.detach().requires_grad_(), self.row)

    def backward(self, leaves: NetworkEmbedding) -> None:
        """Passes on the gradients that `leaves`, made by `detach`, have collected."""
        for own, leaf in ((self.road, leaves.road), (self.zone, leaves.zone)):
            if leaf.grad is not None:
                own.backward(leaf.grad)  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, eq=False)
class StudentOutput:
    """What one forward pass gives.

    Attributes:
        logits: float32 [P, C], -inf beyond a position's candidates.
        state: [P, 2d] trip state at each position.
        history_logits: those of a destination-free head, float32 [P, C], in training with one (`history_head`).
    """

    logits: Tensor
    state: Tensor
    history_logits: Tensor | None = None


class HOSER(nn.Module):
    """The student; parameters and buffers are named as in public HOSER weights."""

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
