"""One training run: everything built from the settings, the loop over epochs, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
import tqdm

from shared import config, files, progress
from shared.errors import CompatibilityError, ConfigError, TeacherError
from shared.store import Store
from shared.training.forecast import Forecast, to_go
from shared.training.states import random_state
from shared.training.torch_ranks import RankLost
from student_trainer.data.loader import Prefetcher
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.teacher import FailureStats, NullTeacher, Teacher
from student_trainer.model import students
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.student import Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint, Progress
from student_trainer.runs.layout import RunFiles
from student_trainer.train import cuda_graphs, headroom
from student_trainer.train.compiling import use_own_directory
from student_trainer.train.config import TrainConfig
from student_trainer.train.destination_target import give_target
from student_trainer.train.feed import Feed
from student_trainer.train.logbook import Logbook, brief
from student_trainer.train.meters import Clock
from student_trainer.train.profiling import Profile
from student_trainer.train.resume import check_sources, note_extension, restore, snapshot, target_of
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, Step, prepare_step
from student_trainer.train.trainer import Trainer
from student_trainer.train.trips import open_trips, schedule_of
from student_trainer.train.validate import Validator

log = logging.getLogger(__name__)


class Session:
    """One run: everything built from the settings, and the loop over epochs.

    Attributes:
        revision: of the teacher's weights; empty where none is asked.
        random_state: of torch's generators where the run goes on, for who trains several in one process.
    """

    def __init__(
        self,
        settings: TrainConfig,
        store: Store,
        runtime: Runtime,
        teacher: Teacher | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        """At its first step, or where the checkpoint `resumed` was written.

        Raises:
            ConfigError: the store has fewer trips than the settings want.
            CompatibilityError: the run goes on with another teacher, or other sampled trips.
            FileFormatError: the checkpoint does not hold the state of such a run.
        """
        self.settings, self.store, self.runtime = settings, store, runtime
        self.teacher, self._failures_told = teacher or NullTeacher(), FailureStats()
        self.revision = self.teacher.revision if settings.distils else ""
        self.scale = TimeScale(*store.time_scale)
        self._profile: Profile | None = None
        network = RoadNetwork.load(store)
        trips = open_trips(store, settings, self.revision)

        self.model, head = _new_student(settings, network, runtime.device)
        asked = self.teacher if settings.distils else None
        rounds = cuda_graphs.wanted(settings.runtime, runtime)
        self.feed = Feed(network, trips.training, settings, asked, runtime.device, rounds)
        self.schedule = schedule_of(trips, settings)
        self.val_feed = Feed(network, trips.validation, settings, asked, runtime.device)
        self.validator = Validator(self.val_feed, trips.validation, settings, self.scale, runtime)
        self.trainer = Trainer(self.model, head, settings, self.scale, runtime, self.schedule, trips.first_sampled)
        self._sampled = trips.sampled_digest
        if resumed is not None:
            check_sources(resumed, self.revision, self._sampled)
        if settings.distils and settings.distill.target == "destination" and settings.distill.pulls:
            known = None if resumed is None else target_of(resumed)
            give_target(known, self.feed, self.val_feed, trips, store.network("length"), settings, runtime.ranks)
        if resumed is not None:
            restore(self.trainer, resumed)
            note_extension(self.trainer, self.schedule, resumed)
        self.random_state = random_state(runtime.device)
        log.info(
            "%s, %d parameters, %d steps of %d epochs on %s",
            trips, sum(p.numel() for p in self.model.parameters()),
            self.schedule.total_steps, settings.optim.epochs, runtime.device,
        )  # fmt: skip

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.trainer.progress

    def train(self) -> None:
        """Trains from where the run stands to the end; what ends it between two steps leaves a checkpoint."""
        for _ in self.epochs():
            pass

    def epochs(self) -> Generator[dict[str, float]]:
        """Trains as `train` does, and yields the validation metrics of each epoch once its checkpoint is written.

        Who stops early closes the iterator; the run can be resumed. Other runs may go on in between.
        """
        self._check_ranks()
        logbook: Logbook | None = None
        if self.runtime.ranks.is_first:
            if self.settings.profile != "off":
                self._profile = Profile(self.settings.out, trace=self.settings.profile == "trace")
            config.save(self.settings, "train", RunFiles(self.settings.out).config)
            if self.progress.step < self.schedule.total_steps:
                files.remove(RunFiles(self.settings.out).summary)  # a run that goes on has not finished
            else:
                log.info("the run is finished; no step is left")
            log.info("settings: %s", config.in_force(self.settings))
            logbook = Logbook(self.settings, self.progress.step, self.revision, self.store.fingerprint)
        try:
            yield from self._loop(logbook)
        except (KeyboardInterrupt, TeacherError, CompatibilityError, ConfigError, RankLost) as error:
            self._save("last")
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            log.info("%s; checkpoint at step %d, go on with --resume", reason, self.progress.step)
            if isinstance(error, TeacherError | CompatibilityError | ConfigError):
                path = RunFiles(self.settings.out).last
                where = f"checkpoint at step {self.progress.step}: {path}; go on with --resume"
                raise type(error)(f"{error}; {where}") from None
            raise
        finally:
            if logbook is not None:
                logbook.close()
            if self._profile is not None:
                self._profile.close()
        if self.runtime.ranks.is_first:
            self._export_best()

    def _loop(self, logbook: Logbook | None) -> Iterator[dict[str, float]]:
        lookahead = self.settings.client.lookahead
        bar = progress.bar(
            total=self.schedule.total_steps,
            initial=self.progress.step,
            unit="step",
            shown=self.settings.log.progress and self.runtime.ranks.is_first,
        )
        clock, forecast = Clock(), Forecast()
        plan = self.schedule.from_step(self.progress.step)
        with bar, Prefetcher(self._prepare, plan, lookahead) as steps:
            yield from self._after_step(logbook, bar, clock)  # what an interrupted run has left undone
            waited = time.perf_counter()
            for step in steps:
                if self.runtime.ranks.any(self.runtime.stop.requested):
                    self.trainer.settle_sums()
                    raise KeyboardInterrupt
                before = dict(self.trainer.stopwatch.seconds)
                self.trainer.stopwatch.seconds["data_wait"] += time.perf_counter() - waited
                with step.updating():
                    self.trainer.train_step(step)
                if self._profile is not None:
                    self._profile.add_step(self.trainer.stopwatch.since(before), time.perf_counter() - waited)
                bar.update()
                self._advance(forecast)
                yield from self._after_step(logbook, bar, clock)
                if self._is_checkpoint_due():
                    self.trainer.settle_sums()
                    self._save("last")
                waited = time.perf_counter()
                forecast.begin()

    def _advance(self, forecast: Forecast) -> None:
        """Counts a step, and says once how long the others will take."""
        was_said = forecast.is_worth_saying
        forecast.add(1)
        seconds = forecast.seconds_for(self.schedule.total_steps - self.progress.step)
        if forecast.is_worth_saying and not was_said and seconds and self.runtime.ranks.is_first:
            log.info("%.0f ms a step: %s, beside validation", 1000 / forecast.pace, to_go(seconds))

    def _prepare(self, plan: PlannedStep) -> Step:
        return prepare_step(self.feed, self.model.graph, plan, self.runtime.ranks, self.runtime.tracer)

    def _after_step(self, logbook: Logbook | None, bar: tqdm.tqdm[Any], clock: Clock) -> Iterator[dict[str, float]]:
        """Metrics and validation that are due at this step and not done yet; yields after an epoch."""
        step = self.progress.step
        ends_epoch = step > 0 and step % self.schedule.steps_per_epoch == 0
        is_due = step % self.settings.log.every == 0 or ends_epoch
        if is_due and self.runtime.ranks.any(self.trainer.has_metrics):
            with self.runtime.stop.shield():
                metrics = self.trainer.take_metrics(clock.lap()) | self._take_failures()
                if logbook is not None:
                    logbook.write(step, metrics)
            bar.set_postfix(brief(metrics))
        if ends_epoch and len(self.progress.history) < step // self.schedule.steps_per_epoch:
            self._end_epoch(logbook)
            yield self.progress.history[-1]
            clock.lap()

    def _take_failures(self) -> dict[str, float]:
        """What the teacher's failures have cost since the last call: attempts of all ranks, seconds of the slowest."""
        if not self.settings.distils:
            return {}
        now, told = dataclasses.replace(self.teacher.failure_stats), self._failures_told
        self._failures_told = now
        ranks = self.runtime.ranks.gather((now.retries - told.retries, now.seconds - told.seconds))
        retries, seconds = zip(*ranks, strict=True)
        return {"perf/teacher_retries": float(sum(retries)), "perf/teacher_away_s": max(seconds)}

    def _is_checkpoint_due(self) -> bool:
        every = self.settings.log.checkpoint_every
        ends_epoch = self.progress.step % self.schedule.steps_per_epoch == 0  # has its own
        return every > 0 and self.progress.step % every == 0 and not ends_epoch

    def _end_epoch(self, logbook: Logbook | None) -> None:
        metrics = self.validator.measure(self.model, self.trainer.head)
        epoch = self.progress.step // self.schedule.steps_per_epoch
        self._check_ranks()
        told = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log.info("epoch %d/%d: %s", epoch, self.settings.optim.epochs, told)
        with self.runtime.stop.shield():
            if logbook is not None:
                logbook.write(self.progress.step, {f"val/{name}": value for name, value in metrics.items()})
            self.progress.history.append({"epoch": epoch, "step": self.progress.step, **metrics})
            if metrics["accuracy"] > self.progress.best_accuracy:
                self.progress.best_accuracy, self.progress.best_epoch = metrics["accuracy"], epoch
                self._save("best")
            self._save("last")

    def _check_ranks(self) -> None:
        self.runtime.ranks.check_same(self.trainer.learned.values(), f"at step {self.progress.step}")

    def _save(self, name: str) -> None:
        """Writes a checkpoint, on the first rank; the others' would be the same."""
        if not self.runtime.ranks.is_first:
            return
        keep = self.settings.log.keep_checkpoints if name == "last" else 1
        with self.runtime.stop.shield():
            content = snapshot(self.trainer, self.store, self.revision, self._sampled, self.feed.target)
            checkpoints.save(RunFiles(self.settings.out).checkpoint(name), content, keep)

    def _export_best(self) -> None:
        best = checkpoints.load(RunFiles(self.settings.out).best)
        parts = students.architecture_of(self.model)
        parts.load(self.model, best.model)
        if (file := students.published(self.settings.model.name)) is not None:
            assert parts.public is not None, "what has a name for the file has its form"
            checkpoints.save_tensors(self.settings.out / file, parts.public.of(self.model))

    def write_summary(self, seconds: float) -> dict[str, Any]:
        """Writes and returns the result of a finished run, which took so long, with its `headroom`."""
        summary = self.summary() | {"seconds": round(seconds, 1), "headroom": self._headroom()}
        files.write_json(RunFiles(self.settings.out).summary, summary)
        return summary

    def _headroom(self) -> dict[str, Any] | None:
        if not (self.settings.distils and self.settings.log.headroom):
            return None
        trips = self.settings.batch.train_trips or len(self.store.trips("train", "mmap"))
        return headroom.of_run(self.model, self.val_feed, self.validator, self.runtime.device, trips)

    def summary(self) -> dict[str, Any]:
        """The result of a finished run."""
        best = self.progress.history[self.progress.best_epoch - 1]
        return {
            "out": str(self.settings.out),
            "best": best,
            "last": self.progress.history[-1],
            "steps": self.progress.step,
            "extended": self.progress.extended,
            "bad_steps": self.progress.bad_steps,
            "missed_micro_batches": self.progress.missed_micro_batches,
            "missed_positions": self.progress.missed_positions,
            "teacher_revision": self.revision or None,
            "store": self.store.fingerprint,
        }


def _new_student(
    settings: TrainConfig, network: RoadNetwork, device: torch.device
) -> tuple[Student, HistoryHead | None]:
    """With the initial weights that the run's seed gives, which are the same on every device, and its head, if any."""
    torch.manual_seed(settings.seed)
    model: Student = students.architecture(settings.model.name).build(settings.model, network).to(device)
    head = HistoryHead(model).to(device) if settings.distils and settings.distill.head > 0 else None
    if settings.runtime.compile:
        use_own_directory()
        model.compile_parts()
    return model, head
