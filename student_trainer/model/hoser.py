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
from student_trainer.model.navigator import Navigator
from student_trainer.model.roads import RoadNetworkEncoder
from student_trainer.model.trajectory import TrajectoryEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class CandidateLayout:
    """Flat candidates [K] <-> padded [P, C].

    Attributes:
        position: int64 [K] position of each candidate.
        slot: int64 [K] its index among the position's candidates.
        exists: bool [P, C].
    """

    position: Tensor
    slot: Tensor
    exists: Tensor

    @classmethod
    def of(cls, length: Tensor) -> CandidateLayout:
        """The layout of positions with `length` [P] candidates."""
        slots = torch.arange(int(length.max()), device=length.device)
        exists = slots < length[:, None]
        position, slot = exists.nonzero(as_tuple=True)
        return cls(position, slot, exists)

    def pad(self, values: Tensor, fill: float) -> Tensor:
        """Flat values [K] as [P, C]."""
        padded = values.new_full(self.exists.shape, fill)
        return padded.index_put((self.position, self.slot), values)


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkEmbedding:
    """Road embeddings [N, d] and zone embeddings [Z, d]."""

    road: Tensor
    zone: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class StudentOutput:
    """What one forward pass gives.

    Attributes:
        logits: float32 [P, C], -inf beyond a position's candidates.
        state: [P, 2d] trip state at each position.
        layout: how candidates are laid out.
    """

    logits: Tensor
    state: Tensor
    layout: CandidateLayout


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

    def embed_network(self) -> NetworkEmbedding:
        """Embeds all roads and zones; with gradients, so that training reaches them."""
        return NetworkEmbedding(*self.road_network_encoder())

    def forward(self, batch: Batch, network: NetworkEmbedding) -> StudentOutput:
        """Scores every candidate of every valid position of the batch."""
        zone = self.road2zone[batch.road]
        states = self.trajectory_encoder(
            network.road[batch.road], network.zone[zone], batch.temporal, batch.distance, batch.interval, batch.length
        )
        step = torch.arange(states.shape[1], device=states.device)
        state = states[step < batch.length[:, None]]
        destination_zone = network.zone[self.road2zone[batch.destination]].repeat_interleave(
            batch.length, dim=0, output_size=batch.positions
        )
        layout = CandidateLayout.of(batch.candidate_length)
        logits = self.navigator.scores(
            state,
            destination_zone,
            network.road[batch.candidate_road],
            batch.candidate_distance,
            batch.candidate_angle,
            layout.position,
        )
        return StudentOutput(layout.pad(logits.float(), -torch.inf), state, layout)

    def label_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to each position's true next road, float32 [P].

        Meaningless where the label is -100.
        """
        start = batch.candidate_length.cumsum(0) - batch.candidate_length
        road = batch.candidate_road[start + batch.label.clamp(min=0)]
        return self.navigator.times(output.state, network.road[road]).float()

    def candidate_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to every candidate, float32 [K]."""
        state = output.state[output.layout.position]
        return self.navigator.times(state, network.road[batch.candidate_road]).float()
