"""What the rest of the program asks of a student, whatever its architecture.

    settings --Architecture.build--> Student --embed_network--> NetworkEmbedding
    Batch + NetworkEmbedding --Student--> StudentOutput --label_times, candidate_times--> times

A `Student` is trained, validated and asked at every position of whole trips. Two other forms of it answer faster: the
`Decoder`, which goes on from steps that it knows (searches for whole trips), and the last step alone (trips under
way, exported files). `students` has the architectures by name; `tests/student_trainer/model/test_student_protocol.py`
takes a second one through all jobs.

Shapes: B trips, T steps, P positions, K candidates of all positions, C most candidates of a position, N roads, Z zones,
M roads of a field, d width of a road's embedding; R paths, of a decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from shared.arrays import Bool, Float64, Int64
from student_trainer.data.batch import Batch, Candidates
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import StudentConfig
from student_trainer.model.device import rows
from student_trainer.model.road_graph import Field, RoadGraph
from student_trainer.model.steps import StepTable
from student_trainer.model.time_scale import TimeScale


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkEmbedding:
    """Embeddings of the roads of a field, [M, d], and of all zones, [Z, d]; [0, d] for a student without zones.

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
        state: [P, `Student.state_dim`] what the student has made of the trip up to each position.
        history_logits: those of a destination-free head, float32 [P, C], in training with one (`history_head`).
    """

    logits: Tensor
    state: Tensor
    history_logits: Tensor | None = None


class Student(Protocol):
    """A model of trips on one road network: a torch module, of which the second half of these members are.

    A position's numbers may not depend on the trips beside it, but for rounding. Nothing random happens after it is
    built, so that a run is resumed to the bit.
    """

    @property
    def config(self) -> StudentConfig:
        """The settings that it was built from; their `name` says which architecture it is of."""

    @property
    def graph(self) -> RoadGraph | None:
        """Tells the field of a set of roads: what is computed for a step's roads alone; None: always of all roads."""

    @property
    def road_dim(self) -> int:
        """d: width of a road's embedding."""

    @property
    def state_dim(self) -> int:
        """Width of a position's state."""

    def embed_network(self, field: Field | None = None) -> NetworkEmbedding:
        """Embeds the roads of a field (on the model's device), or all; with gradients. Once for all micro-batches."""

    def __call__(self, batch: Batch, network: NetworkEmbedding) -> StudentOutput:
        """Scores every candidate of every valid position of the batch.

        On CUDA it is recorded once for each shape of batches and repeated: it may not read values of the device.
        """

    def label_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to each position's true next road, float32 [P].

        Meaningless where the label is -100.
        """

    def candidate_times(self, batch: Batch, network: NetworkEmbedding, output: StudentOutput) -> Tensor:
        """Standardised log1p seconds to every candidate, float32 [K]."""

    def compile_parts(self) -> None:
        """Has `torch.compile` translate what a step spends its time in, for `runtime.compile`."""

    training: bool
    """Whether it is in training mode."""

    def train(self, mode: bool = True) -> Self:
        """Training mode, or that for answers."""

    def to(self, device: torch.device) -> Self:
        """Moves it to a device."""

    def requires_grad_(self, requires_grad: bool) -> Self:
        """Whether gradients are wanted of its parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer changes."""

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint keeps, by name."""


class Decoder(Protocol):
    """A student that goes on from what it knows of a path, in threads with one torch thread each.

    A step's numbers do not depend, not by a bit, on the steps that are computed with it: no trip depends on the trips
    that are searched beside it. On an accelerator `advance` waits for the device once.

    Attributes:
        device: where it computes; all else is on the host.
        network: the road network.
        forward_calls, forward_rows: passes so far, and steps computed in them.
    """

    device: torch.device
    network: RoadNetwork
    forward_calls: int
    forward_rows: int

    def table(self) -> StepTable:
        """An empty table of steps, of the kind that the other methods take."""

    def advance(
        self, table: Any, place: Int64, length: Int64, weekend: Bool, destination: Int64
    ) -> tuple[Candidates, Float64]:
        """Computes the last step of every path; all steps before have been computed.

        Args:
            table: the steps.
            place: int64 [R] of the last steps; length: int64 [R] steps of their paths.
            weekend: bool [R] whether the path began at one.
            destination: int64 [R] roads.

        Returns:
            The candidates of the last steps, and the logarithm of each one's probability, float64 [K].

        Raises:
            DataError: the weights give logits that are not finite.
        """

    def seconds(self, table: Any, place: Int64, road: Int64) -> Int64:
        """Travel times from computed steps [R] to the entry of roads [R]: whole seconds, not negative, int64 [R]."""

    def least_costs(self, destination: int) -> tuple[Candidates, Float64]:
        """For every road, its candidates and a lower bound of -log p of each, whatever path leads to the road: [K].

        0 is a bound, too; a higher one makes `search.heuristic=bound` expand less.
        """


StudentT = TypeVar("StudentT")
PublishedT = TypeVar("PublishedT", contravariant=True)


class PublicWeights(Protocol[PublishedT]):
    """The form in which others publish and load an architecture's weights: a bare `state_dict`."""

    def settings_of(self, weights: Mapping[str, Tensor]) -> StudentConfig:
        """The settings of the student that they belong to; raises `FileFormatError`, saying why they are of none."""

    def of(self, student: PublishedT) -> dict[str, Tensor]:
        """A student's weights in this form, on the host."""


class Architecture(Protocol[StudentT]):
    """A kind of student: how it is built and loaded, and its faster forms."""

    @property
    def public(self) -> PublicWeights[StudentT] | None:
        """The form that others have of its weights; None if there is none."""

    def build(self, config: Any, network: RoadNetwork) -> StudentT:
        """A student on a network, of the architecture's own settings.

        Its initial weights are drawn from torch's generator of the CPU, so that a seed gives the same on every device.
        """

    def load(self, student: StudentT, weights: Mapping[str, Tensor]) -> None:
        """Loads what `state_dict` or `public` gave; raises `CompatibilityError` if it is of another student."""

    def decoder(self, student: StudentT, network: RoadNetwork, scale: TimeScale, top_k: int) -> Decoder:
        """The student as a search has it.

        Args:
            student: on the device where it is to compute.
            network: the store's.
            scale: how travel times were standardised.
            top_k: candidates per position, as for `build_batch`.
        """

    def last_step(self, student: StudentT) -> nn.Module:
        """A module that scores the last step of trips under way, on the student's device.

        Its input are the tensors of a `data.partial.PartialBatch`; it returns logits and standardised log1p seconds
        of the candidates, [B, C] each. `export` traces it with `torch.export`.
        """
