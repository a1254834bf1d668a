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

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from shared.errors import TrainingError, Unavailable
from shared.wire import ScoreReply
from student_trainer.distill.loss import answer_of
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.student import NetworkEmbedding, Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs.checkpoint import Progress
from student_trainer.train import cuda_graphs
from student_trainer.train.config import TrainConfig
from student_trainer.train.cuda_graphs import Request, StepGraphs
from student_trainer.train.feed import Prepared
from student_trainer.train.meters import Stopwatch, Sums
from student_trainer.train.objective import Divisors, Objective, forward
from student_trainer.train.optim import build_optimizer, distill_share, learning_rate
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import Schedule, Step

log = logging.getLogger(__name__)


class Trainer:
    """Makes one optimizer step at a time.

    Attributes:
        model, head, optimizer: what a step changes; a head only where the settings give it a weight.
        settings, scale, runtime: what it is made with.
        progress: where the run stands.
        sums: of the losses since the last metrics.
        stopwatch: of the time since then.
        graphs: what repeats whole steps; None where all are made by single operations.
    """

    def __init__(
        self,
        model: Student,
        head: HistoryHead | None,
        settings: TrainConfig,
        scale: TimeScale,
        runtime: Runtime,
        schedule: Schedule,
        first_sampled: int | None = None,
    ) -> None:
        """At the first step of the schedule, whose trips are sampled ones from the number `first_sampled` on."""
        self.model, self.head, self.settings, self.scale, self.runtime = model, head, settings, scale, runtime
        self.optimizer = build_optimizer(settings.optim, model, *([] if head is None else [head]))
        self.progress = Progress()
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._objective = Objective(
            settings.distill, settings.time_weight, scale, settings.optim.label_smoothing, first_sampled
        )
        self._total = schedule.total_steps
        self._most_missed = int(settings.client.max_skipped_share * schedule.total_positions)
        self._missed = [0, 0]
        self._awaited = runtime.device if settings.profile != "off" and runtime.device.type == "cuda" else None
        self.sums, self.stopwatch = Sums(), Stopwatch(self._awaited)
        self.graphs: StepGraphs | None = None
        if cuda_graphs.wanted(settings.runtime, runtime):
            self.graphs = StepGraphs(
                model, head, self.optimizer, self._objective, runtime, settings.optim.clip_norm,
                is_demanded=settings.runtime.graphs == "on",
            )  # fmt: skip

    @property
    def learned(self) -> dict[str, Tensor]:
        """All that a step changes, by name: the same on every rank."""
        head = {} if self.head is None else self.head.state_dict()
        return self.model.state_dict() | {f"head.{name}": value for name, value in head.items()}

    def train_step(self, step: Step) -> None:
        """One optimizer step, made whole or not at all.

        A non-finite loss or gradient, on any rank, skips the update and is counted.

        Raises:
            TrainingError: more bad steps than `optim.max_bad_steps`.
            TeacherError: the teacher has failed, and `client` does not let the run go on without it; the step is not
                made.
            CompatibilityError: the teacher has become another; the step is not made.
        """
        rate = learning_rate(step.plan.number, self._total, self.settings.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found = Sums()
        with self.runtime.precision.float32_products():
            update = self._repeat_of(step, rate, found)
            if update is None:
                update = functools.partial(self._update, self.compute_gradients(step, found), found)
        missed = self._check_missed()
        with self.runtime.stop.shield():
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
        divisors = self._count(step)
        self._tally(int(divisors.positions))
        self._missed = [0, 0]
        self.optimizer.zero_grad(set_to_none=True)
        finite = torch.ones((), dtype=torch.bool, device=self.runtime.device)
        if step.micro_batches:
            with self.stopwatch.stage("transfer"):
                field = None if step.field is None else step.field.to(self.runtime.device)
            with self.stopwatch.stage("network_forward"), self.runtime.precision.autocast():
                network = self.model.embed_network(field)
            leaves = network.detach()
            for item in step.micro_batches:
                finite &= self._accumulate(item, leaves, divisors, found)
            with self.stopwatch.stage("network_backward"):
                network.backward(leaves)
        with self._meeting():
            return self.runtime.ranks.sum_gradients(self._parameters, ~finite) == 0

    def _count(self, step: Step) -> Divisors:
        """By what the sums of a step of all ranks are divided."""
        counts = [(item.batch.positions, item.labels, item.hindsight) for item in step.micro_batches]
        with self._meeting():
            positions, labels, hindsight = self.runtime.ranks.sums(*map(sum, zip((0, 0, 0), *counts, strict=True)))
        settings = self.settings.distill
        weighted = labels + settings.sampled_labels * hindsight
        share = distill_share(step.plan.number, self._total, settings)
        return Divisors(positions, weighted or 1, max(labels, 1), share)

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
        with self.stopwatch.stage("teacher_wait"):
            asked = [item.answer(self.settings.client.on_failure) for item in step.micro_batches]
        pairs = zip(step.micro_batches, asked, strict=True)
        answers = [item.arrays(reply) for item, reply in pairs if reply is not None]
        if len(answers) < sum(item.reply is not None for item in step.micro_batches):
            return None
        divisors = self._count(step)
        request = Request(packed, answers, {**divisors._asdict(), "learning_rate": rate, "hold": 0})
        with self.stopwatch.stage("transfer" if self.graphs.knows(request) else "record"):
            recorded = self.graphs.ready(request)
        if recorded is None:
            return None
        self._missed = [0, 0]
        self._tally(int(divisors.positions))

        def repeat() -> bool:
            with self.stopwatch.stage("graph"):
                result = recorded.make()
            for item, reply, sums in zip(step.micro_batches, asked, result.sums, strict=True):
                self._note(item, reply, sums, found)
            found.add("gradient_norm", result.norm, 1)
            return result.is_finite

        return repeat

    def _meeting(self) -> AbstractContextManager[None]:
        """Counts the time that other ranks take."""
        return self.stopwatch.stage("ranks") if self.runtime.ranks.world > 1 else nullcontext()

    def _accumulate(self, item: Prepared, network: NetworkEmbedding, divisors: Divisors, found: Sums) -> Tensor:
        """Adds a micro-batch's gradients; whether its loss is finite, bool []."""
        with self.stopwatch.stage("transfer"):
            batch = item.on(self.runtime.device)
        with self.stopwatch.stage("forward"), self.runtime.precision.autocast():
            output, times = forward(self.model, self.head, batch, network)
        with self.stopwatch.stage("teacher_wait"):
            reply = item.answer(self.settings.client.on_failure)
        with self.stopwatch.stage("loss"):
            answer = None if reply is None else answer_of(item.arrays(reply), batch)
            outcome = self._objective.of(batch, output, times, answer, divisors)
        with self.stopwatch.stage("backward"):
            torch.autograd.backward(self.runtime.precision.scaler.scale(outcome.loss))
        self._note(item, reply, outcome.sums, found)
        return torch.isfinite(outcome.loss)

    def _note(self, item: Prepared, reply: ScoreReply | None, sums: Mapping[str, Tensor | float], found: Sums) -> None:
        """Adds what a micro-batch has given."""
        for name, total in sums.items():
            found.add(name, total, item.count(name))
        self._note_missed(item, item.reply is not None and reply is None, found)
        if reply is not None:
            found.add("teacher_queue_ms", reply.queue_us / 1000, 1)
            found.add("teacher_compute_ms", reply.compute_us / 1000, 1)
        self.stopwatch.padded_steps += item.padded_steps
        self.stopwatch.trip_steps += item.batch.positions

    def _note_missed(self, item: Prepared, is_missed: bool, found: Sums) -> None:
        if self.settings.client.on_failure == "skip" and item.reply is not None:
            found.add("teacher_missed", float(is_missed * item.batch.positions), item.batch.positions)
        self._missed[0] += is_missed
        self._missed[1] += is_missed * item.batch.positions

    def _check_missed(self) -> tuple[int, int]:
        """Micro-batches and positions of the run without a teacher, if this step is made; of all ranks.

        Raises:
            TeacherError: they would be too many.
        """
        progress = self.progress
        if self.settings.client.on_failure != "skip":
            return progress.missed_micro_batches, progress.missed_positions
        with self._meeting():
            micro_batches, new = self.runtime.ranks.sums(*self._missed)
        positions = progress.missed_positions + new
        if new and positions > self._most_missed:
            raise Unavailable(
                f"{positions} positions would be trained without the teacher, more than the {self._most_missed} that "
                f"client.max_skipped_share {self.settings.client.max_skipped_share:g} allows"
            )
        return progress.missed_micro_batches + micro_batches, positions

    def _update(self, finite: Tensor, found: Sums) -> bool:
        """Clips and steps; False, and weights unchanged, if the loss (bool []) or the gradient is not finite."""
        scaler = self.runtime.precision.scaler
        with self.stopwatch.stage("optimizer"):
            scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.optim.clip_norm)
            loss_is_finite, norm_is_finite, norm_is = found.read(finite, torch.isfinite(norm), norm)
            if loss_is_finite and (norm_is_finite or scaler.is_enabled()):
                scaler.step(self.optimizer)  # an enabled scaler skips the step itself and lowers its scale
            scaler.update()
            if norm_is_finite:
                found.add("gradient_norm", norm_is, 1)
            return bool(loss_is_finite and (norm_is_finite or (scaler.is_enabled() and scaler.get_scale() >= 1)))

    def _count_bad_step(self, step: Step) -> None:
        self.progress.bad_steps += 1
        limit = self.settings.optim.max_bad_steps
        if self.runtime.ranks.is_first:
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
        totals = self.runtime.ranks.gather(self.sums.totals())
        self.sums = Sums.of(totals) if self.runtime.ranks.is_first else Sums()

    def take_metrics(self, wall_seconds: float) -> dict[str, float]:
        """Means since the last call: losses of all ranks, and milliseconds of each stage of a step of this one."""
        means = Sums.of(self.runtime.ranks.gather(self.sums.totals())).means()
        metrics = {f"train/{name}": value for name, value in means.items()} | self.stopwatch.metrics(wall_seconds)
        self.sums, self.stopwatch = Sums(), Stopwatch(self._awaited)
        return metrics
