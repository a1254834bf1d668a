"""`student-trainer train`: open, connect, build, train, close.

OUT/config.yaml           resolved settings
OUT/checkpoints/last.pt   where to go on from; last.1.pt the one before it
OUT/checkpoints/best.pt   highest validation accuracy
OUT/hoser.pth             weights of best.pt as public HOSER loads them
OUT/metrics.jsonl, tensorboard/, wandb/, wandb_run.json
OUT/summary.json          result of a finished run
OUT/profile.json, trace.json   where its time went, if `profile` is set
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
import tqdm

from shared import claims, config, files
from shared.errors import CompatibilityError, ConfigError, TeacherError
from shared.store import SplitName, Store, Trips
from student_trainer.data.loader import Prefetcher, TripOrder
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import NAME_LENGTH, ClientConfig
from student_trainer.distill.query import check_teacher
from student_trainer.distill.teacher import FailureStats, NullTeacher, Teacher
from student_trainer.model import upstream
from student_trainer.model.device import pick_device
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint, Progress
from student_trainer.runs.layout import RunFiles, check_unused
from student_trainer.runs.sinks import check_wandb
from student_trainer.train.compiling import use_own_directory
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.graphs import wanted
from student_trainer.train.logbook import Logbook
from student_trainer.train.meters import Clock, Sums
from student_trainer.train.optim import (
    Precision,
    build_optimizer,
    random_state,
    restore_optimizer,
    restore_scaler,
    set_random_state,
)
from student_trainer.train.profiling import Profile
from student_trainer.train.ranks import ALONE, RankLost, Ranks, join
from student_trainer.train.stop import StopSignals
from student_trainer.train.trainer import PlannedStep, Schedule, Step, Trainer, prepare_step
from student_trainer.train.validate import Validator

log = logging.getLogger(__name__)

FOR_EVER_SECONDS = 365 * 86_400.0
"""How long other ranks wait for one that waits for its teacher without a limit."""
FREE_TO_CHANGE = ("resume", "profile", "teacher", "client", "log", "runtime", "out", "data")
"""Settings that a resumed run may change: where and how it runs. Another runtime changes the last bits."""


def run(settings: TrainConfig) -> int:
    """Trains, alone or as one of the ranks that `torchrun` started; rank 0 prints the summary as JSON on stdout."""
    patience = settings.client.patience_seconds or FOR_EVER_SECONDS
    with join(settings.client.connect_seconds + patience) as ranks, contextlib.ExitStack() as held:
        return _run(settings, ranks, held)


def _run(settings: TrainConfig, ranks: Ranks, held: contextlib.ExitStack) -> int:
    start = time.monotonic()
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    device, store, resumed = ranks.together(lambda: _open(settings, ranks, held))
    resumed = ranks.broadcast(resumed)
    teacher, revision = ranks.together(lambda: connect(settings, store, ranks))
    with StopSignals() as stop:
        try:
            session = Session(settings, store, teacher, revision, device, resumed, ranks, stop)
            session.train()
        finally:
            teacher.close()
    if ranks.is_first:
        summary = write_summary(session, time.monotonic() - start)
        print(json.dumps(summary))
    return 0


def write_summary(session: Session, seconds: float) -> dict[str, Any]:
    """Writes and returns the result of a finished run, which took so long."""
    summary = session.summary() | {"seconds": round(seconds, 1)}
    files.write_json(RunFiles(session.settings.out).summary, summary)
    return summary


def _open(
    settings: TrainConfig, ranks: Ranks, held: contextlib.ExitStack
) -> tuple[torch.device, Store, Checkpoint | None]:
    """Device and data of this rank; the first claims the directory, which others need not see, while `held` is open."""
    if settings.optim.batch_size < ranks.world:
        raise ConfigError(
            f"optim.batch_size {settings.optim.batch_size} is for all ranks together, and there are {ranks.world}"
        )
    device = pick_device(settings.runtime.device, ranks.local, ranks.world, "runtime.device")
    store = Store(settings.data)
    if ranks.is_first:
        check_wandb(settings.log.wandb)
        held.enter_context(claims.directory(settings.out))
    return device, store, claim_directory(settings, store) if ranks.is_first else None


def connect(settings: TrainConfig, store: Store, ranks: Ranks = ALONE) -> tuple[Teacher, str]:
    """The teacher and its weights revision.

    Raises:
        Unavailable: it does not answer in time.
        CompatibilityError: it does not fit the store or the settings.
    """
    if not settings.distils:
        log.info("training without a teacher (%s)", "teacher=none" if settings.teacher == "none" else "weight 0")
        return NullTeacher(), ""
    teacher = GrpcTeacher(settings.teacher, _client_of(settings.client, ranks))
    try:
        check_teacher(teacher.info, store, settings.distill, settings.teacher)
    except BaseException:
        teacher.close()
        raise
    log.info(
        "teacher at %s: weights %s, %s on %s",
        settings.teacher, teacher.info.weights_revision, teacher.info.compute_dtype, teacher.info.device,
    )  # fmt: skip
    return teacher, teacher.info.weights_revision


def _client_of(client: ClientConfig, ranks: Ranks) -> ClientConfig:
    """A rank's own name for the teacher, which shares its time among names."""
    if ranks.world == 1 or not client.name:  # a name made up is one process's own
        return client
    suffix = f"-rank{ranks.rank}"
    return client.model_copy(update={"name": client.name[: NAME_LENGTH - len(suffix)] + suffix})


def claim_directory(settings: TrainConfig, store: Store) -> Checkpoint | None:
    """The checkpoint to resume from, if any. OUT is claimed by then: temporary files are nobody's.

    Raises:
        ConfigError: OUT holds a run, and it is not resumed or has other settings.
        CompatibilityError: it was trained on another store.
        FileFormatError: none of its checkpoints can be read.
    """
    if settings.resume:
        last = RunFiles(settings.out).last
        for name in ("last", "best"):
            checkpoints.remove_halves(last.with_stem(name))
        resumed = checkpoints.load_newest(last)
        if resumed is None:
            log.info("%s has no checkpoint yet; starting at step 0", settings.out)
        else:
            _check_resumable(settings, store, resumed)
        return resumed
    check_unused(settings.out)
    return None


def _check_resumable(settings: TrainConfig, store: Store, resumed: Checkpoint) -> None:
    if resumed.store != store.fingerprint:
        raise CompatibilityError(f"the run in {settings.out} was trained on another store than {store.path}")
    now = settings.model_dump(mode="json")
    changed = [k for k in now if k not in FREE_TO_CHANGE and now[k] != resumed.config.get(k)]
    if changed:
        raise ConfigError(
            f"cannot resume {settings.out} with other settings: {', '.join(changed)} differ from its config.yaml"
        )


class Session:
    """One run: everything built from the settings, and the loop over epochs.

    Attributes:
        random_state: of torch's generators where the run goes on, for who trains several in one process.
    """

    def __init__(
        self,
        settings: TrainConfig,
        store: Store,
        teacher: Teacher,
        revision: str,
        device: torch.device,
        resumed: Checkpoint | None,
        ranks: Ranks = ALONE,
        stop: StopSignals | None = None,
    ) -> None:
        self.settings, self.store, self.revision, self.device = settings, store, revision, device
        self.ranks, self.stop = ranks, stop or StopSignals()
        self.teacher, self._failures_told = teacher, FailureStats()
        self._profile: Profile | None = None
        network = RoadNetwork.load(store)
        train, val = store.trips("train", settings.batch.cache), store.trips("val", settings.batch.cache)
        if settings.batch.val_trips:
            val = val.take(_choose_trips(val, settings, "val"))
        self.scale = TimeScale(*store.time_scale)

        torch.manual_seed(settings.seed)
        self.model = HOSER(settings.model, network).to(device)
        optimizer = build_optimizer(self.model, settings.optim)
        self.precision = Precision(settings.runtime, device)
        progress = Progress()
        if resumed is not None:
            progress = self._restore(resumed, optimizer)
        if settings.runtime.compile:
            use_own_directory()
            self.model.trajectory_encoder.compile(dynamic=True)
            self.model.navigator.compile(dynamic=True)

        asked = teacher if settings.distils else None
        rounds = wanted(settings.runtime, device, self.precision, ranks.world)
        self.feed = Feed(network, train, settings.batch, settings.distill, asked, device, rounds)
        chosen = _choose_trips(train, settings)
        steps = train.lengths[chosen] - 1
        if settings.batch.max_steps:
            steps = np.minimum(steps, settings.batch.max_steps)
        order = TripOrder(chosen, steps, settings.optim.batch_size, settings.batch.bucket_batches, settings.seed)
        self.schedule = Schedule(order, settings.optim.accumulation, settings.optim.epochs)
        val_feed = Feed(network, val, settings.batch, settings.distill, asked, device)
        self.validator = Validator(
            val_feed, val, settings.optim.batch_size, settings.distill, self.scale, self.precision, device, ranks,
            settings.client.on_failure,
        )  # fmt: skip
        self.trainer = Trainer(
            self.model, optimizer, settings, self.scale, self.precision, device, self.schedule.total_steps,
            int(steps.sum()) * settings.optim.epochs, progress, ranks, self.stop,
        )  # fmt: skip
        self.random_state = random_state(device)
        if resumed is not None and ranks.is_first:
            self.trainer.sums = Sums.of([resumed.sums])
        log.info(
            "%d training trips, %d validation trips, %d parameters, %d steps of %d epochs on %s",
            len(chosen), len(val), sum(p.numel() for p in self.model.parameters()),
            self.schedule.total_steps, settings.optim.epochs, device,
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
        if self.ranks.is_first:
            if self.settings.profile != "off":
                self._profile = Profile(self.settings.out, trace=self.settings.profile == "trace")
            config.save(self.settings, "train", RunFiles(self.settings.out).config)
            logbook = Logbook(self.settings, self.progress.step)
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
        if self.ranks.is_first:
            self._export_best()

    def _loop(self, logbook: Logbook | None) -> Iterator[dict[str, float]]:
        lookahead = self.settings.client.lookahead
        bar = tqdm.tqdm(
            total=self.schedule.total_steps,
            initial=self.progress.step,
            unit="step",
            disable=None if self.settings.log.progress and self.ranks.is_first else True,
            file=sys.stderr,
        )
        clock = Clock()
        plan = self.schedule.from_step(self.progress.step)
        with bar, Prefetcher(self._prepare, plan, lookahead) as steps:
            yield from self._after_step(logbook, bar, clock)  # what an interrupted run has left undone
            waited = time.perf_counter()
            for step in steps:
                if self.ranks.any(self.stop.requested):
                    self.trainer.settle_sums()
                    raise KeyboardInterrupt
                before = dict(self.trainer.stopwatch.seconds)
                self.trainer.stopwatch.seconds["data_wait"] += time.perf_counter() - waited
                self.trainer.train_step(step)
                if self._profile is not None:
                    self._profile.add_step(self.trainer.stopwatch.since(before), time.perf_counter() - waited)
                bar.update()
                yield from self._after_step(logbook, bar, clock)
                if self._is_checkpoint_due():
                    self.trainer.settle_sums()
                    self._save("last")
                waited = time.perf_counter()

    def _prepare(self, plan: PlannedStep) -> Step:
        return prepare_step(self.feed, self.model.graph, plan, self.ranks)

    def _after_step(self, logbook: Logbook | None, bar: tqdm.tqdm, clock: Clock) -> Iterator[dict[str, float]]:
        """Metrics and validation that are due at this step and not done yet; yields after an epoch."""
        step = self.progress.step
        ends_epoch = step > 0 and step % self.schedule.steps_per_epoch == 0
        is_due = step % self.settings.log.every == 0 or ends_epoch
        if is_due and self.ranks.any(self.trainer.has_metrics):
            with self.stop.shield():
                metrics = self.trainer.take_metrics(clock.lap()) | self._take_failures()
                if logbook is not None:
                    logbook.write(step, metrics)
            bar.set_postfix(_brief(metrics))
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
        ranks = self.ranks.gather((now.retries - told.retries, now.seconds - told.seconds))
        retries, seconds = zip(*ranks, strict=True)
        return {"perf/teacher_retries": float(sum(retries)), "perf/teacher_away_s": max(seconds)}

    def _is_checkpoint_due(self) -> bool:
        every = self.settings.log.checkpoint_every
        ends_epoch = self.progress.step % self.schedule.steps_per_epoch == 0  # has its own
        return every > 0 and self.progress.step % every == 0 and not ends_epoch

    def _end_epoch(self, logbook: Logbook | None) -> None:
        metrics, epoch = self.validator.measure(self.model), self.progress.step // self.schedule.steps_per_epoch
        self._check_ranks()
        log.info("epoch %d: %s", epoch, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        with self.stop.shield():
            if logbook is not None:
                logbook.write(self.progress.step, {f"val/{name}": value for name, value in metrics.items()})
            self.progress.history.append({"epoch": epoch, "step": self.progress.step, **metrics})
            if metrics["accuracy"] > self.progress.best_accuracy:
                self.progress.best_accuracy, self.progress.best_epoch = metrics["accuracy"], epoch
                self._save("best")
            self._save("last")

    def _check_ranks(self) -> None:
        self.ranks.check_same(self.model.state_dict(), f"at step {self.progress.step}")

    def _save(self, name: str) -> None:
        """Writes a checkpoint, on the first rank; the others' would be the same."""
        if not self.ranks.is_first:
            return
        content = Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.trainer.optimizer.state_dict(),
            scaler=self.precision.scaler.state_dict(),
            progress=self.progress,
            config=self.settings.model_dump(mode="json"),
            store=self.store.fingerprint,
            mu=self.scale.mu,
            sigma=self.scale.sigma,
            teacher_revision=self.revision,
            sums=self.trainer.sums.totals(),
            random_state=random_state(self.device),
            torch=str(torch.__version__),
        )
        keep = self.settings.log.keep_checkpoints if name == "last" else 1
        with self.stop.shield():
            checkpoints.save(RunFiles(self.settings.out).checkpoint(name), content, keep)

    def _restore(self, resumed: Checkpoint, optimizer: torch.optim.Optimizer) -> Progress:
        if resumed.teacher_revision != self.revision:
            raise CompatibilityError(
                f"the run was distilled from teacher weights {resumed.teacher_revision or 'none'}, "
                f"the teacher serves {self.revision or 'none'}; serve the same teacher file to resume"
            )
        upstream.load_into(self.model, resumed.model)
        restore_optimizer(optimizer, resumed.optimizer)
        restore_scaler(self.precision.scaler, resumed.scaler)
        set_random_state(resumed.random_state, self.device)
        log.info("resuming at step %d", resumed.progress.step)
        return resumed.progress

    def _export_best(self) -> None:
        best = checkpoints.load(RunFiles(self.settings.out).best)
        upstream.load_into(self.model, best.model)
        checkpoints.save_tensors(RunFiles(self.settings.out).exported, upstream.export(self.model))

    def summary(self) -> dict[str, Any]:
        """The result of a finished run."""
        best = self.progress.history[self.progress.best_epoch - 1]
        return {
            "out": str(self.settings.out),
            "best": best,
            "last": self.progress.history[-1],
            "steps": self.progress.step,
            "bad_steps": self.progress.bad_steps,
            "missed_micro_batches": self.progress.missed_micro_batches,
            "missed_positions": self.progress.missed_positions,
            "teacher_revision": self.revision or None,
            "store": self.store.fingerprint,
        }


def _choose_trips(trips: Trips, settings: TrainConfig, split: SplitName = "train") -> np.ndarray:
    """All trips, or a sample of them that depends on the sample's seed alone."""
    wanted, kind = {
        "train": (settings.batch.train_trips, "training"),
        "val": (settings.batch.val_trips, "validation"),
    }[split]
    if wanted > len(trips):
        raise ConfigError(f"batch.{split}_trips is {wanted}, but the store has {len(trips)} {kind} trips")
    if not wanted:
        return np.arange(len(trips))
    return np.sort(np.random.default_rng(settings.batch.sample_seed).permutation(len(trips))[:wanted])


def _brief(metrics: dict[str, float]) -> dict[str, str]:
    shown = {"loss": "train/loss", "acc": "train/accuracy", "kl": "train/loss_kl", "wait ms": "perf/teacher_wait_ms"}
    return {label: f"{metrics[name]:.3f}" for label, name in shown.items() if name in metrics}
