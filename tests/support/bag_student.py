"""A second student, as small as one can be: the next road from the last one, the mean of all so far, and the end.

A state is [2d]: the embedding of the last road, and the mean of those of all roads so far. Everything that follows is
sums of rows, so the same lines serve whole trips, the last step and a step at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from shared.arrays import Bool, Float64, Int64
from student_trainer.data.batch import Batch, Candidates, candidates_of
from student_trainer.data.network import RoadNetwork
from student_trainer.model import fitting
from student_trainer.model.config import StudentConfig
from student_trainer.model.road_graph import Field
from student_trainer.model.steps import StepTable
from student_trainer.model.student import NetworkEmbedding, StudentOutput
from student_trainer.model.students import Entry
from student_trainer.model.time_scale import TimeScale


class BagConfig(StudentConfig):
    """Its settings."""

    name: Literal["bag"] = "bag"
    """Its name."""
    width: int = 8
    """d."""


class Bag(nn.Module):
    """Implements `Student`."""

    graph = None

    def __init__(self, config: BagConfig, network: RoadNetwork) -> None:
        super().__init__()
        self.config, self.road_dim, self.state_dim = config, config.width, 2 * config.width
        self.embedding = nn.Embedding(network.num_roads, config.width)
        self.query = nn.Linear(3 * config.width, config.width)
        self.nearness = nn.Parameter(torch.ones(()))
        self.time = nn.Linear(3 * config.width, 1)

    def embed_network(self, field: Field | None = None) -> NetworkEmbedding:
        """All roads, whatever is asked for; no zones."""
        assert field is None
        weight = self.embedding.weight
        return NetworkEmbedding(weight, weight.new_zeros(0, self.road_dim), None)

    def forward(self, batch: Batch, network: NetworkEmbedding) -> StudentOutput:
        """See `Student`."""
        road = network.roads(batch.road)
        state = self.states(road).flatten(0, 1)[batch.padded_step]
        end = network.roads(batch.destination)[batch.padded_step // batch.road.shape[1]]
        position = batch.layout.position
        candidate = network.roads(batch.candidate_road)
        logits = self.logits(state[position], end[position], candidate, batch.candidate_distance)
        return StudentOutput(batch.layout.pad(logits.float(), -torch.inf), state)

    def states(self, road: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, 2d]."""
        count = torch.arange(1, road.shape[1] + 1, device=road.device)
        return torch.cat([road, road.cumsum(1) / count[:, None]], -1)

    def logits(self, state: Tensor, end: Tensor, candidate: Tensor, distance: Tensor) -> Tensor:
        """[..., 2d], [..., d], [..., d], [...] -> [...]."""
        return (self.query(torch.cat([state, end], -1)) * candidate).sum(-1) - self.nearness * distance

    def times(self, state: Tensor, road: Tensor) -> Tensor:
        """[..., 2d], [..., d] -> [...]."""
        return self.time(torch.cat([state, road], -1)).squeeze(-1).float()  # type: ignore[no-any-return]

    def label_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """See `Student`."""
        start = batch.candidate_length.cumsum(0) - batch.candidate_length
        return self.times(output.state, network.roads(batch.candidate_road[start + batch.label.clamp(min=0)]))

    def candidate_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """See `Student`."""
        return self.times(output.state[batch.layout.position], network.roads(batch.candidate_road))

    def compile_parts(self) -> None:
        """See `Student`."""
        self.query.compile()


class BagLastStep(nn.Module):
    """Of trips under way."""

    def __init__(self, bag: Bag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, road: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """See `Architecture.last_step`."""
        *_, length, destination, candidate_road, distance, _ = given
        states, embedding = self.bag.states(self.bag.embedding(road)), self.bag.embedding
        last = (length - 1)[:, None, None].expand(-1, 1, states.shape[2])
        state = states.gather(1, last).expand(-1, candidate_road.shape[1], -1)
        candidate, end = embedding(candidate_road), embedding(destination)[:, None].expand(-1, state.shape[1], -1)
        return self.bag.logits(state, end, candidate, distance), self.bag.times(state, candidate)


class BagSteps(StepTable):
    """Steps with the sum of the embeddings of a path's roads, float64 [M, d], and their number, int64 [M]."""

    COLUMNS = (*StepTable.COLUMNS, "total", "count")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.total, self.count = np.zeros((self.capacity, width)), np.zeros(self.capacity, np.int64)


class BagDecoder:
    """Implements `Decoder`: every row by itself, in float64."""

    device = torch.device("cpu")

    def __init__(self, bag: Bag, network: RoadNetwork, scale: TimeScale, top_k: int) -> None:
        self.network, self.forward_calls, self.forward_rows = network, 0, 0
        self._bag, self._scale, self._top_k = copy.deepcopy(bag).double(), scale, top_k
        self._road = self._bag.embedding.weight.detach().numpy()

    def table(self) -> BagSteps:
        """See `Decoder`."""
        return BagSteps(self._bag.road_dim)

    def advance(
        self, table: BagSteps, place: Int64, length: Int64, weekend: Bool, destination: Int64
    ) -> tuple[Candidates, Float64]:
        """See `Decoder`."""
        self.forward_calls, self.forward_rows = self.forward_calls + 1, self.forward_rows + len(place)
        before = np.where(table.parent[place] < 0, 0, table.total[table.parent[place]].T).T
        table.total[place], table.count[place] = before + self._road[table.road[place]], length
        no_label = np.full(len(place), -1, np.int32)
        candidates = candidates_of(self.network, table.road[place], no_label, destination, self._top_k)
        row = np.repeat(np.arange(len(place)), candidates.length)
        distance = torch.from_numpy(candidates.distance.astype(np.float64))
        ends, roads = (torch.from_numpy(self._road[ids]) for ids in (destination[row], candidates.road))
        states = self._states(table, place)[row]
        rows = zip(states, ends, roads, distance, strict=True)
        with torch.inference_mode():
            logits = np.array([float(self._bag.logits(*one)) for one in rows])
        parts = np.split(logits, np.cumsum(candidates.length)[:-1])
        return candidates, np.concatenate([part - np.logaddexp.reduce(part) for part in parts])

    def seconds(self, table: BagSteps, place: Int64, road: Int64) -> Int64:
        """See `Decoder`."""
        rows = zip(self._states(table, place), torch.from_numpy(self._road[road]), strict=True)
        with torch.inference_mode():
            times = np.array([float(self._bag.times(*one)) for one in rows], np.float64)
        return np.asarray(np.rint(np.expm1(times * self._scale.sigma + self._scale.mu).clip(0)), np.int64)

    def least_costs(self, destination: int) -> tuple[Candidates, Float64]:
        """0 for each."""
        roads = np.arange(self.network.num_roads)
        no_label = np.full(len(roads), -1, np.int32)
        candidates = candidates_of(self.network, roads, no_label, np.full(len(roads), destination), self._top_k)
        return candidates, np.zeros(len(candidates.road))

    def _states(self, table: BagSteps, place: Int64) -> Tensor:
        mean = table.total[place] / table.count[place][:, None]
        return torch.from_numpy(np.concatenate([self._road[table.road[place]], mean], 1))


class BagParts:
    """Implements `Architecture`."""

    public = None

    def build(self, config: BagConfig, network: RoadNetwork) -> Bag:
        """See `Architecture`."""
        return Bag(config, network)

    def load(self, student: Bag, weights: Mapping[str, Tensor]) -> None:
        """See `Architecture`."""
        fitting.load(student, weights)

    def decoder(self, student: Bag, network: RoadNetwork, scale: TimeScale, top_k: int) -> BagDecoder:
        """See `Architecture`."""
        return BagDecoder(student, network, scale, top_k)

    def last_step(self, student: Bag) -> BagLastStep:
        """See `Architecture`."""
        return BagLastStep(student)


ENTRY = Entry(BagConfig, BagParts)
