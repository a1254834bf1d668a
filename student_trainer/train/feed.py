"""Batches with the teacher's answers under way: what both training and validation consume."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import torch

from shared.arrays import Int64
from shared.errors import TeacherError
from shared.store import Trips
from shared.wire import ScoreReply
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import OnFailure
from student_trainer.distill.query import build_query
from student_trainer.distill.teacher import Teacher
from student_trainer.train.config import RecipeConfig


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch, how many of its positions have a label, and the teacher's answer if one was asked for."""

    batch: Batch
    labels: int
    reply: Future[ScoreReply] | None

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
        pins: whether what is for the device lies in page-locked memory, from where copies are asynchronous.
    """

    def __init__(
        self,
        network: RoadNetwork,
        trips: Trips,
        settings: RecipeConfig,
        teacher: Teacher | None,
        device: torch.device,
    ) -> None:
        """A feed without a teacher asks nothing."""
        self.pins = device.type == "cuda"
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
        return Prepared(batch.pin() if self.pins else batch, labels, reply)
