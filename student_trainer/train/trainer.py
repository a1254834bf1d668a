"""The training loop: prepared step -> forward -> teacher's answer -> loss -> backward -> update.

An optimizer step is a group of micro-batches, each shared out among ranks. Sums over their positions are divided by
the positions of the whole group on all ranks, so that accumulation changes nothing but memory, and ranks nothing but
time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from shared.errors import TrainingError
from student_trainer.data.batch import Batch
from student_trainer.data.loader import Index, TripOrder
from student_trainer.distill import kl as distillation
from student_trainer.distill.kl import TeacherTarget
from student_trainer.distill.query import build_target
from student_trainer.model.hoser import HOSER
from student_trainer.train import loss as losses
from student_trainer.train.checkpoint import Progress
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed, Prepared
from student_trainer.train.loss import TimeScale
from student_trainer.train.meters import Stopwatch, Sums
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
    """A planned step whose batches are built and whose questions are asked: this rank's share, which may be none."""

    plan: PlannedStep
    micro_batches: Sequence[Prepared]


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


def prepare_step(feed: Feed, plan: PlannedStep, ranks: Ranks = ALONE) -> Step:
    """Builds a rank's batches of a step and asks the teacher; runs ahead of the loop."""
    shares = [ranks.share(index, feed.lengths(index)) for index in plan.micro_batches]
    return Step(plan, [feed.prepare(share) for share in shares if len(share)])


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
        progress: Progress,
        ranks: Ranks,
        stop: StopSignals,
    ) -> None:
        self.model, self.optimizer, self.progress = model, optimizer, progress
        self._ranks, self._stop = ranks, stop
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._settings, self._scale = settings, scale
        self._precision, self._device, self._total = precision, device, total_steps
        self.sums, self.stopwatch = Sums(), Stopwatch()

    def train_step(self, step: Step) -> None:
        """One optimizer step, made whole or not at all.

        A non-finite loss or gradient, on any rank, skips the update and is counted.

        Raises:
            TrainingError: more bad steps than `optim.max_bad_steps`.
        """
        sums, number = self.sums.copy(), self.progress.step
        try:
            self._make_step(step)
        except BaseException:
            if self.progress.step == number:
                self.sums = sums
            raise

    def _make_step(self, step: Step) -> None:
        rate = learning_rate(step.plan.number, self._total, self._settings.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        positions = sum(item.batch.positions for item in step.micro_batches)
        labels = sum(int((item.batch.label >= 0).sum()) for item in step.micro_batches)
        with self._meeting():
            positions, labels = self._ranks.sums(positions, labels)
        self.optimizer.zero_grad(set_to_none=True)
        finite = all(self._accumulate(item, positions, max(labels, 1)) for item in step.micro_batches)
        with self._meeting():
            finite = self._ranks.sum_gradients(self._parameters, finite)
        with self._stop.shield():
            with self.stopwatch.part("optimizer"):
                finite = self._update() if finite else False
            if not finite:
                self._count_bad_step(step)
            self.progress.step = step.plan.number + 1
            self.sums.add("learning_rate", rate, 1)
            self.stopwatch.steps += 1
            self.stopwatch.positions += positions

    def _meeting(self) -> AbstractContextManager[None]:
        """Counts the time that other ranks take."""
        return self.stopwatch.part("ranks") if self._ranks.world > 1 else nullcontext()

    def _accumulate(self, item: Prepared, positions: int, labels: int) -> bool:
        """Adds a micro-batch's gradients; False, and nothing added, if its loss is not finite."""
        with self.stopwatch.part("transfer"):
            batch = item.batch.to(self._device)
        with self.stopwatch.part("forward"), self._precision.autocast():
            network = self.model.embed_network()
            output = self.model(batch, network)
            times = self.model.label_times(batch, network, output)
        with self.stopwatch.part("teacher_wait"):
            reply = item.reply.result() if item.reply is not None else None
        with self.stopwatch.part("loss"):
            target = None if reply is None else build_target(reply, batch.candidate_token, output.layout)
            sums = self._loss_sums(batch, output.logits, times, target)
            loss = sums["next_road"] / labels + self._settings.optim.time_weight * sums["time"] / labels
            if target is not None:
                loss = loss + self._settings.distill.weight * sums["kl"] / positions
            finite = bool(torch.isfinite(loss))
        if not finite:
            return False
        with self.stopwatch.part("backward"):
            torch.autograd.backward(self._precision.scaler.scale(loss))
        self.sums.add("loss", loss * positions, batch.positions)
        self._record(batch, output.logits.detach(), sums, target)
        if reply is not None:
            self.sums.add("teacher_queue_ms", reply.queue_us / 1000, 1)
            self.sums.add("teacher_compute_ms", reply.compute_us / 1000, 1)
        return True

    def _loss_sums(
        self, batch: Batch, logits: Tensor, times: Tensor, target: TeacherTarget | None
    ) -> dict[str, Tensor]:
        """Sums of each loss over the micro-batch: next_road and time over its labels, kl over its positions."""
        errors = losses.time_errors(times, batch.seconds, self._scale)
        sums = {
            "next_road": losses.next_road_loss(logits, batch.label),
            "time": errors[batch.label >= 0].sum(),
        }
        if target is not None:
            config = self._settings.distill
            kl = distillation.distillation_loss(logits, target, config.temperature, config.collisions)
            sums["kl"] = kl.sum() * (config.temperature**2 if config.tau_squared else 1.0)
        return sums

    def _record(self, batch: Batch, logits: Tensor, sums: dict[str, Tensor], target: TeacherTarget | None) -> None:
        count = int((batch.label >= 0).sum())
        self.sums.add("loss_next_road", sums["next_road"], count)
        self.sums.add("loss_time", sums["time"], count)
        self.sums.add("accuracy", (logits.argmax(-1) == batch.label).float().sum(), batch.positions)
        if target is not None:
            self.sums.add("loss_kl", sums["kl"], batch.positions)
            self.sums.add_fields(distillation.teacher_diagnostics(logits, target, batch.label), batch.positions)

    def _update(self) -> bool:
        """Clips and steps; False, and weights unchanged, if the gradient is not finite."""
        scaler = self._precision.scaler
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._settings.optim.clip_norm)
        finite = bool(torch.isfinite(norm))
        if finite or scaler.is_enabled():  # an enabled scaler skips the step itself and lowers its scale
            scaler.step(self.optimizer)
        scaler.update()
        if finite:
            self.sums.add("gradient_norm", norm, 1)
        return finite or (scaler.is_enabled() and scaler.get_scale() >= 1)

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
        self.sums, self.stopwatch = Sums(), Stopwatch()
        return metrics
