"""Batches with the teacher's answers under way: what both training and validation consume."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np
import torch

from shared.arrays import Int64
from shared.errors import TeacherError
from shared.store import Trips
from shared.wire import ScoreReply
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import Packed, Shape, to_device
from student_trainer.distill.config import OnFailure
from student_trainer.distill.query import build_query
from student_trainer.distill.teacher import Teacher
from student_trainer.train.config import RecipeConfig


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch on its way to the device.

    Attributes:
        batch: in memory of the host.
        labels: how many of its positions have one.
        reply: the teacher's answer, if one was asked for.
        packed: the batch in page-locked memory, where the device is an accelerator; perhaps padded further.
    """

    batch: Batch
    labels: int
    reply: Future[ScoreReply] | None
    packed: Packed | None = None

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


class Feed:
    """Builds batches of a split and sends the teacher's share of each on its way at once.

    Attributes:
        embeds_all: whether the device embeds all roads for a step, so that nobody looks for those that it needs.
    """

    def __init__(
        self,
        network: RoadNetwork,
        trips: Trips,
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

    def lengths(self, index: Int64) -> Int64:
        """Roads of each of the given trips: int64, as `index`."""
        return self._trips.offsets[index + 1] - self._trips.offsets[index]

    def prepare(self, index: Int64, ask: bool = True) -> Prepared:
        """The batch of the given trips; called by the prefetching thread."""
        batch = build_batch(self._network, self._trips, index, self._config.candidate_top_k, self._config.max_steps)
        reply = None
        if self._teacher is not None and ask:
            reply = self._teacher.submit(build_query(batch, self._network, self._distill))
        labels = int((batch.label >= 0).sum())
        is_whole = self._pins and not self._rounds
        return Prepared(batch, labels, reply, Packed.of(batch, pinned=True) if is_whole else None)

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
