"""The training loop: prepared step -> forward -> teacher's answer -> loss -> backward -> update.

An optimizer step is a group of micro-batches, each shared out among ranks. Sums over their positions are divided by
the positions of the whole group on all ranks, so that accumulation changes nothing but memory, and ranks nothing but
time. The road network is embedded once for all of a rank's micro-batches: their gradients add up at its embeddings,
and go back through its encoder once.

Where the teacher has failed and `client.on_failure` is `skip`, a micro-batch's KL is left out of the sum, which is
divided as before: a position that has an answer pulls as hard as it would have anyway, one without does not pull, and
no rank needs to know which answers the others have. All ranks call the same collectives in either case.

An accelerator is waited for once a step, for all that is known of it (`device.read`), and once more for the scale of a
step whose values overflowed. Where it can, it makes the whole step by one call (`graphs`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import TrainingError, Unavailable
from shared.wire import ScoreReply
from student_trainer.data.loader import Index, TripOrder
from student_trainer.distill.query import build_target
from student_trainer.model.hoser import HOSER, NetworkEmbedding
from student_trainer.model.road_graph import Field, RoadGraph
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs.checkpoint import Progress
from student_trainer.train import graphs
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed, Prepared
from student_trainer.train.graphs import Request, StepGraphs
from student_trainer.train.meters import Stopwatch, Sums
from student_trainer.train.objective import OF_LABELS, Objective
from student_trainer.train.optim import Precision, learning_rate
from student_trainer.train.ranks import ALONE, Ranks
from student_trainer.train.stop import StopSignals

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """The trips of an optimizer step, micro-batch by micro-batch, of all ranks."""

    number: int
    epoch: int
    ends_epoch: bool
    micro_batches: Sequence[Index]


@dataclasses.dataclass(frozen=True)
class Step:
    """A planned step whose batches are built and whose questions are asked: this rank's share, which may be none.

    Attributes:
        plan: the plan.
        micro_batches: its batches.
        field: what must be computed of the road network for all of them; None for all of it.
    """

    plan: PlannedStep
    micro_batches: Sequence[Prepared]
    field: Field | None


class Schedule:
    """Which trips form which optimizer step: a pure function of the seed and the step."""

    def __init__(self, order: TripOrder, accumulation: int, epochs: int) -> None:
        self._order, self._accumulation = order, accumulation
        self.steps_per_epoch = -(-order.batches_per_epoch // accumulation)
        self.total_steps = self.steps_per_epoch * epochs

    def from_step(self, first: int) -> Iterator[PlannedStep]:
        """The steps `first`, `first + 1`, ... to the end."""
        for epoch in range(first // self.steps_per_epoch, self.total_steps // self.steps_per_epoch):
            batches = self._order.epoch(epoch)
            for i in range(self.steps_per_epoch):
                number = epoch * self.steps_per_epoch + i
                if number >= first:
                    group = batches[i * self._accumulation : (i + 1) * self._accumulation]
                    yield PlannedStep(number, epoch, i == self.steps_per_epoch - 1, group)


def prepare_step(feed: Feed, graph: RoadGraph, plan: PlannedStep, ranks: Ranks = ALONE) -> Step:
    """Builds a rank's batches of a step and asks the teacher; runs ahead of the loop."""
    shares = [ranks.share(index, feed.lengths(index)) for index in plan.micro_batches]
    micro_batches = feed.rounded([feed.prepare(share) for share in shares if len(share)])
    if feed.embeds_all:
        return Step(plan, micro_batches, None)
    roads = [ids.numpy() for item in micro_batches for ids in item.batch.roads_read]
    return Step(plan, micro_batches, graph.field(np.concatenate([np.zeros(0, np.int64), *roads])))


class Trainer:
    """Owns model, optimiser and precision, and makes one optimizer step at a time."""

    def __init__(
        self,
        model: HOSER,
        optimizer: torch.optim.Optimizer,
        settings: TrainConfig,
        scale: TimeScale,
        precision: Precision,
        device: torch.device,
        total_steps: int,
        total_positions: int,
        progress: Progress,
        ranks: Ranks,
        stop: StopSignals,
    ) -> None:
        self.model, self.optimizer, self.progress = model, optimizer, progress
        self._ranks, self._stop = ranks, stop
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._settings = settings
        self._objective = Objective(settings.distill, settings.optim.time_weight, scale)
        self._precision, self._device, self._total = precision, device, total_steps
        self._most_missed = int(settings.client.max_skipped_share * total_positions)
        self._missed = [0, 0]
        self._awaited = device if settings.profile != "off" and device.type == "cuda" else None
        self.sums, self.stopwatch = Sums(), Stopwatch(self._awaited)
        self.graphs: StepGraphs | None = None
        if graphs.wanted(settings.runtime, device, precision, ranks.world):
            self.graphs = StepGraphs(
                model, optimizer, self._objective, precision, settings.optim.clip_norm, device,
                is_demanded=settings.runtime.graphs == "on",
            )  # fmt: skip

    def train_step(self, step: Step) -> None:
        """One optimizer step, made whole or not at all.

        A non-finite loss or gradient, on any rank, skips the update and is counted.

        Raises:
            TrainingError: more bad steps than `optim.max_bad_steps`.
            TeacherError: the teacher has failed, and `client` does not let the run go on without it; the step is not
                made.
            CompatibilityError: the teacher has become another; the step is not made.
        """
        rate = learning_rate(step.plan.number, self._total, self._settings.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found = Sums()
        with self._precision.float32_products():
            update = self._repeat_of(step, rate, found)
            if update is None:
                update = functools.partial(self._update, self.compute_gradients(step, found), found)
        missed = self._check_missed()
        with self._stop.shield():
            is_finite = update()
            if is_finite:
                self.sums.merge(found)
            else:
                self._count_bad_step(step)
            self.progress.step = step.plan.number + 1
            self.progress.missed_micro_batches, self.progress.missed_positions = missed
            self.sums.add("learning_rate", rate, 1)

    def compute_gradients(self, step: Step, found: Sums) -> Tensor:
        """Leaves the gradients of a step's loss, of all ranks, in the parameters.

        Args:
            step: this rank's share.
            found: where to add what is known of the loss.

        Returns:
            bool [], whether all losses are finite; the gradients are of no use otherwise.
        """
        positions, labels = self._count(step)
        self._tally(positions)
        self._missed = [0, 0]
        self.optimizer.zero_grad(set_to_none=True)
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        if step.micro_batches:
            with self.stopwatch.part("transfer"):
                field = None if step.field is None else step.field.to(self._device)
            with self.stopwatch.part("network_forward"), self._precision.autocast():
                network = self.model.embed_network(field)
            leaves = network.detach()
            for item in step.micro_batches:
                finite &= self._accumulate(item, leaves, positions, max(labels, 1), found)
            with self.stopwatch.part("network_backward"):
                network.backward(leaves)
        with self._meeting():
            return self._ranks.sum_gradients(self._parameters, finite)

    def _count(self, step: Step) -> tuple[int, int]:
        """Positions and labels of a step on all ranks, by which its sums are divided."""
        positions = sum(item.batch.positions for item in step.micro_batches)
        labels = sum(item.labels for item in step.micro_batches)
        with self._meeting():
            positions, labels = self._ranks.sums(positions, labels)
        return positions, labels

    def _tally(self, positions: int) -> None:
        self.stopwatch.steps += 1
        self.stopwatch.positions += positions

    def _repeat_of(self, step: Step, rate: float, found: Sums) -> Callable[[], bool] | None:
        """What makes the whole step by one call, and says whether it was finite.

        Returns:
            None if the step must be made by single operations, so where an answer is missing.
        """
        packed = [item.packed for item in step.micro_batches if item.packed is not None]
        if self.graphs is None or len(packed) < max(len(step.micro_batches), 1):
            return None
        with self.stopwatch.part("teacher_wait"):
            asked = [item.answer(self._settings.client.on_failure) for item in step.micro_batches]
        replies = [reply for reply in asked if reply is not None]
        if len(replies) < sum(item.reply is not None for item in step.micro_batches):
            return None
        positions, labels = self._count(step)
        numbers = {"positions": positions, "labels": max(labels, 1), "learning_rate": rate, "hold": 0}
        request = Request(packed, [reply.log_probs for reply in replies], numbers)
        with self.stopwatch.part("transfer" if self.graphs.knows(request) else "record"):
            recorded = self.graphs.ready(request)
        if recorded is None:
            return None
        self._missed = [0, 0]
        self._tally(positions)

        def repeat() -> bool:
            with self.stopwatch.part("graph"):
                result = recorded.make()
            for item, reply, sums in zip(step.micro_batches, asked, result.sums, strict=True):
                self._note(item, reply, sums, found)
            found.add("gradient_norm", result.norm, 1)
            return result.is_finite

        return repeat

    def _meeting(self) -> AbstractContextManager[None]:
        """Counts the time that other ranks take."""
        return self.stopwatch.part("ranks") if self._ranks.world > 1 else nullcontext()

    def _accumulate(
        self, item: Prepared, network: NetworkEmbedding, positions: int, labels: int, found: Sums
    ) -> Tensor:
        """Adds a micro-batch's gradients; whether its loss is finite, bool []."""
        with self.stopwatch.part("transfer"):
            batch = item.on(self._device)
        with self.stopwatch.part("forward"), self._precision.autocast():
            output = self.model(batch, network)
            times = self.model.label_times(batch, network, output)
        with self.stopwatch.part("teacher_wait"):
            reply = item.answer(self._settings.client.on_failure)
        with self.stopwatch.part("loss"):
            target = None if reply is None else build_target(reply, batch)
            outcome = self._objective.of(batch, output.logits, times, target, positions, labels)
        with self.stopwatch.part("backward"):
            torch.autograd.backward(self._precision.scaler.scale(outcome.loss))
        self._note(item, reply, outcome.sums, found)
        return torch.isfinite(outcome.loss)

    def _note(self, item: Prepared, reply: ScoreReply | None, sums: Mapping[str, Tensor | float], found: Sums) -> None:
        """Adds what a micro-batch has given."""
        for name, total in sums.items():
            found.add(name, total, item.labels if name in OF_LABELS else item.batch.positions)
        self._note_missed(item, item.reply is not None and reply is None, found)
        if reply is not None:
            found.add("teacher_queue_ms", reply.queue_us / 1000, 1)
            found.add("teacher_compute_ms", reply.compute_us / 1000, 1)
        self.stopwatch.places += item.places
        self.stopwatch.filled += item.batch.positions

    def _note_missed(self, item: Prepared, is_missed: bool, found: Sums) -> None:
        if self._settings.client.on_failure == "skip" and item.reply is not None:
            found.add("teacher_missed", float(is_missed * item.batch.positions), item.batch.positions)
        self._missed[0] += is_missed
        self._missed[1] += is_missed * item.batch.positions

    def _check_missed(self) -> tuple[int, int]:
        """Micro-batches and positions of the run without a teacher, if this step is made; of all ranks.

        Raises:
            TeacherError: they would be too many.
        """
        progress = self.progress
        if self._settings.client.on_failure != "skip":
            return progress.missed_micro_batches, progress.missed_positions
        with self._meeting():
            micro_batches, new = self._ranks.sums(*self._missed)
        positions = progress.missed_positions + new
        if new and positions > self._most_missed:
            raise Unavailable(
                f"{positions} positions would be trained without the teacher, more than the {self._most_missed} that "
                f"client.max_skipped_share {self._settings.client.max_skipped_share:g} allows"
            )
        return progress.missed_micro_batches + micro_batches, positions

    def _update(self, finite: Tensor, found: Sums) -> bool:
        """Clips and steps; False, and weights unchanged, if the loss (bool []) or the gradient is not finite."""
        with self.stopwatch.part("optimizer"):
            return self._clip_and_step(finite, found)

    def _clip_and_step(self, finite: Tensor, found: Sums) -> bool:
        scaler = self._precision.scaler
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._settings.optim.clip_norm)
        loss_is_finite, norm_is_finite, norm_is = found.read(finite, torch.isfinite(norm), norm)
        if loss_is_finite and (norm_is_finite or scaler.is_enabled()):
            scaler.step(self.optimizer)  # an enabled scaler skips the step itself and lowers its scale
        scaler.update()
        if norm_is_finite:
            found.add("gradient_norm", norm_is, 1)
        return bool(loss_is_finite and (norm_is_finite or (scaler.is_enabled() and scaler.get_scale() >= 1)))

    def _count_bad_step(self, step: Step) -> None:
        self.progress.bad_steps += 1
        limit = self._settings.optim.max_bad_steps
        if self._ranks.is_first:
            trips = [int(trip) for index in step.plan.micro_batches for trip in index]
            log.warning(
                "step %d: loss or gradient is not finite, update skipped (%d of at most %d); training trips %s",
                step.plan.number, self.progress.bad_steps, limit, trips,
            )  # fmt: skip
        if self.progress.bad_steps > limit:
            raise TrainingError(
                f"{self.progress.bad_steps} steps with a non-finite loss or gradient, more than optim.max_bad_steps "
                f"{limit}; the last at step {step.plan.number}. Try a lower optim.learning_rate or runtime.amp=off"
            )

    @property
    def has_metrics(self) -> bool:
        """Whether this rank has summed anything since the last metrics."""
        return bool(self.sums)

    def settle_sums(self) -> None:
        """Hands what was summed since the last metrics to the first rank, which saves it."""
        totals = self._ranks.gather(self.sums.totals())
        self.sums = Sums.of(totals) if self._ranks.is_first else Sums()

    def take_metrics(self, wall_seconds: float) -> dict[str, float]:
        """Means since the last call: losses of all ranks, and milliseconds of each part of a step of this one."""
        means = Sums.of(self._ranks.gather(self.sums.totals())).means()
        steps = max(self.stopwatch.steps, 1)
        metrics = {f"train/{name}": value for name, value in means.items()}
        for name, seconds in self.stopwatch.seconds.items():
            metrics[f"perf/{name}_ms"] = 1000 * seconds / steps
        metrics["perf/step_ms"] = 1000 * wall_seconds / steps
        metrics["perf/positions_per_s"] = self.stopwatch.positions / wall_seconds if wall_seconds else 0.0
        if self.stopwatch.places:
            metrics["perf/padded_share"] = 1 - self.stopwatch.filled / self.stopwatch.places
        self.sums, self.stopwatch = Sums(), Stopwatch(self._awaited)
        return metrics
