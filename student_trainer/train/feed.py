"""Batches with the teacher's answers under way: what both training and validation consume."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np
import torch

from shared.arrays import Float32, Float64, Floating, Int64
from shared.errors import ConfigError, TeacherError
from shared.wire import ScoreReply
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.mixed import MixedTrips, Numbered
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import Packed, Shape, to_device
from student_trainer.data.shortest_ways import RemainingWays, remaining_ways
from student_trainer.distill.config import OnFailure
from student_trainer.distill.destination import DestinationTarget, features_of
from student_trainer.distill.query import build_query
from student_trainer.distill.teacher import Teacher
from student_trainer.train.config import RecipeConfig


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch on its way to the device.

    Attributes:
        batch: in memory of the host.
        labelled: positions of its labelled trips.
        labels: how many of these have a label.
        hindsight: how many positions of its sampled trips have one.
        reply: the teacher's answer, if one was asked for.
        packed: the batch in page-locked memory, where the device is an accelerator; perhaps padded further.
        pull: float32 [K], what the destination adds to the candidates' scores in `target`, if it is used.
        target: the destination-aware target, if it is used.
    """

    batch: Batch
    labelled: int
    labels: int
    hindsight: int
    reply: Future[ScoreReply] | None
    packed: Packed | None = None
    pull: Float32 | None = None
    target: DestinationTarget | None = None

    def count(self, metric: str) -> int:
        """Positions that a sum of `objective.Outcome` is over."""
        judged = dict.fromkeys(("accuracy", "teacher_accuracy", "target_accuracy", "target_nll"), self.labelled)
        losses = {"loss_next_road": self.labels, "loss_time": self.labels, "loss_hindsight": self.hindsight}
        return {**judged, **losses}.get(metric, self.batch.positions)

    @property
    def padded_steps(self) -> int:
        """Steps of trips that the device computes, padding included."""
        if self.packed is None:
            return self.batch.road.numel()
        return self.packed.shape.trips * self.packed.shape.steps

    def on(self, device: torch.device) -> Batch:
        """The batch on the device, which the host does not wait for."""
        return to_device(self.batch, device) if self.packed is None else self.packed.to(device).unpack()

    def answer(self, on_failure: OnFailure) -> ScoreReply | None:
        """Waits for the teacher's answer.

        Returns:
            None if none was asked for; with `skip`, also if the request has failed for good.

        Raises:
            TeacherError: it has failed for good; with `skip` only where asking again would not help.
            CompatibilityError: the teacher has become another.
        """
        if self.reply is None:
            return None
        try:
            return self.reply.result()
        except TeacherError as error:
            if on_failure == "skip" and error.retryable:
                return None
            raise

    def arrays(self, reply: ScoreReply) -> list[Floating]:
        """What the device needs of the teacher's answer, [K] each: the log-probs, and the target's scores if used."""
        if self.target is None or self.pull is None:
            return [reply.log_probs]
        return [reply.log_probs, self.target.scores(reply.log_probs, self.pull)]


class Feed:
    """Builds batches of trips and sends the teacher's share of each on its way at once.

    Attributes:
        embeds_all: whether the device embeds all roads for a step, so that nobody looks for those that it needs.
        target: the destination-aware target, once it is fitted.
    """

    def __init__(
        self,
        network: RoadNetwork,
        trips: Numbered,
        settings: RecipeConfig,
        teacher: Teacher | None,
        device: torch.device,
        rounds: bool = False,
    ) -> None:
        """A feed without a teacher asks nothing; one that rounds pads batches to the shapes that steps share."""
        self.embeds_all = self._pins = device.type == "cuda"
        self._rounds, self._most_columns = rounds, most_candidates(network, settings.batch.candidate_top_k)
        self._network, self._trips, self._teacher = network, trips, teacher
        self._config, self._distill = settings.batch, settings.distill
        self._first_sampled = trips.first_sampled if isinstance(trips, MixedTrips) else None
        self._ways: tuple[Int64, RemainingWays] | None = None
        self.target: DestinationTarget | None = None

    def lengths(self, index: Int64) -> Int64:
        """Roads of each of the given trips: int64, as `index`."""
        return self._trips.lengths_of(index)

    @property
    def has_ways(self) -> bool:
        """Whether the ways of its trips are measured; see `measure_ways`."""
        return self._ways is not None

    def measure_ways(self, length: Float64, index: Int64, progress: bool) -> None:
        """Measures the ways to their ends of the given trips (ascending), without which there are no features of them.

        Args:
            length: float64 [N], metres of each road.
            index: int64 [n].
            progress: whether to show a bar.

        Raises:
            ConfigError: the settings cut candidates, whose ways are then unknown.
        """
        if self._config.candidate_top_k and most_candidates(self._network, 0) > self._config.candidate_top_k:
            raise ConfigError(
                f"distill.target=destination compares all successors of a road, up to "
                f"{most_candidates(self._network, 0)} here; batch.candidate_top_k {self._config.candidate_top_k} cuts "
                "them: set it to 0"
            )
        self._ways = index, remaining_ways(self._network, length, self._trips.take(index), progress)

    def features(self, batch: Batch) -> Float64:
        """Of a batch's candidates, for the destination-aware target: float64 [K, F - 1]; see `measure_ways`."""
        assert self._ways is not None, "the ways are measured before features are wanted"
        index, ways = self._ways
        return features_of(batch, ways.take(np.searchsorted(index, batch.trips.numpy()), batch.length.numpy()))

    def prepare(self, index: Int64, ask: bool = True) -> Prepared:
        """The batch of the given trips; called by the prefetching thread."""
        batch = build_batch(self._network, self._trips, index, self._config.candidate_top_k, self._config.max_steps)
        reply = None
        if self._teacher is not None and ask:
            reply = self._teacher.submit(build_query(batch, self._network, self._distill))
        pull = None if self.target is None else self.target.pull(self.features(batch))
        is_whole = self._pins and not self._rounds
        packed = Packed.of(batch, pinned=True) if is_whole else None
        return Prepared(batch, *self._counts(batch), reply, packed, pull, self.target)

    def _counts(self, batch: Batch) -> tuple[int, int, int]:
        """Positions of labelled trips, how many of them have a label, how many of the others."""
        has_label = batch.label.numpy() >= 0
        if self._first_sampled is None:
            return batch.positions, int(has_label.sum()), 0
        is_sampled = np.repeat(batch.trips.numpy() >= self._first_sampled, batch.length.numpy())
        return int((~is_sampled).sum()), int((has_label & ~is_sampled).sum()), int((has_label & is_sampled).sum())

    def rounded(self, items: list[Prepared]) -> list[Prepared]:
        """The micro-batches of a step, in one shape if this feed rounds."""
        if not (self._rounds and items):
            return items
        shape = Shape.shared([Shape.of(item.batch) for item in items], self._most_columns)
        return [dataclasses.replace(item, packed=Packed.of(item.batch, shape, self._pins)) for item in items]


def most_candidates(network: RoadNetwork, top_k: int) -> int:
    """Of a position in any batch."""
    most = int(np.diff(network.successor_offsets).max())
    return min(most, top_k) if top_k else most
