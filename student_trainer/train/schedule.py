"""Optimizer steps: which trips each of them takes, and its batches built ahead of the loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from shared import tracing
from shared.arrays import Int64
from shared.tracing import Span, Tracer
from shared.training.torch_ranks import ALONE, Ranks
from student_trainer.data.loader import TripOrder
from student_trainer.model.road_graph import Field, RoadGraph
from student_trainer.train.feed import Feed, Prepared


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """The trips of an optimizer step, micro-batch by micro-batch, of all ranks."""

    number: int
    epoch: int
    micro_batches: Sequence[Int64]


@dataclasses.dataclass(frozen=True)
class Step:
    """A planned step whose batches are built and whose questions are asked: this rank's share, which may be none.

    Attributes:
        plan: the plan.
        micro_batches: its batches.
        field: what must be computed of the road network for all of them; None for all of it.
        span: of the step in the run's trace, from its preparation to its update, if the run has one.
    """

    plan: PlannedStep
    micro_batches: Sequence[Prepared]
    field: Field | None
    span: Span | None = None

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Around the update, after which the step is over."""
        if self.span is None:
            yield
            return
        with self.span.lasting(), tracing.part("update"):
            yield


class Schedule:
    """Which trips form which optimizer step: a pure function of the seed and the step.

    Attributes:
        steps_per_epoch, total_steps: optimizer steps.
        total_positions: of all epochs, of all ranks.
    """

    def __init__(self, order_of: Callable[[int], TripOrder], accumulation: int, epochs: int) -> None:
        """Of epochs whose trips `order_of` orders: they may be others in each, but as many."""
        self._order_of, self._accumulation, self._epochs = order_of, accumulation, epochs
        self.steps_per_epoch = -(-order_of(0).batches_per_epoch // accumulation)
        self.total_steps = self.steps_per_epoch * epochs
        self.total_positions = sum(order_of(epoch).steps_per_epoch for epoch in range(epochs))

    def from_step(self, first: int) -> Iterator[PlannedStep]:
        """The steps `first`, `first + 1`, ... to the end."""
        for epoch in range(first // self.steps_per_epoch, self._epochs):
            batches = self._order_of(epoch).epoch(epoch)
            for i in range(self.steps_per_epoch):
                number = epoch * self.steps_per_epoch + i
                if number >= first:
                    group = batches[i * self._accumulation : (i + 1) * self._accumulation]
                    yield PlannedStep(number, epoch, group)


def prepare_step(
    feed: Feed, graph: RoadGraph | None, plan: PlannedStep, ranks: Ranks = ALONE, tracer: Tracer | None = None
) -> Step:
    """Builds a rank's batches of a step and asks the teacher; runs ahead of the loop."""
    if tracer is None:
        return _prepare(feed, graph, plan, ranks)
    span = tracer.begin("train.step", step=plan.number, epoch=plan.epoch, rank=ranks.rank)
    with tracing.within(span), tracing.part("prepare"):
        return dataclasses.replace(_prepare(feed, graph, plan, ranks), span=span)


def _prepare(feed: Feed, graph: RoadGraph | None, plan: PlannedStep, ranks: Ranks) -> Step:
    shares = [ranks.share(index, feed.lengths(index)) for index in plan.micro_batches]
    micro_batches = feed.rounded([feed.prepare(share) for share in shares if len(share)])
    if feed.embeds_all or graph is None:
        return Step(plan, micro_batches, None)
    roads = [ids.numpy() for item in micro_batches for ids in item.batch.roads_read]
    return Step(plan, micro_batches, graph.field(np.concatenate([np.zeros(0, np.int64), *roads])))
