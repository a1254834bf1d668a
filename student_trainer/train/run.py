"""`student-trainer train`: open, connect, build, train, close.

OUT/config.yaml           resolved settings
OUT/checkpoints/last.pt   where to go on from
OUT/checkpoints/best.pt   highest validation accuracy
OUT/hoser.pth             weights of best.pt as public HOSER loads them
OUT/metrics.jsonl, tensorboard/, wandb/
OUT/summary.json          result of a finished run
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import numpy as np
import torch
import tqdm

from shared import config, files
from shared.errors import CompatibilityError, ConfigError
from shared.store import SplitName, Store, Trips
from student_trainer.data.loader import Prefetcher, TripOrder
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.query import check_teacher
from student_trainer.distill.teacher import NullTeacher, Teacher
from student_trainer.model import upstream
from student_trainer.model.hoser import HOSER
from student_trainer.train import checkpoint as checkpoints
from student_trainer.train.checkpoint import Checkpoint, Progress
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.logbook import Logbook
from student_trainer.train.loss import TimeScale
from student_trainer.train.optim import Precision, build_optimizer, pick_device
from student_trainer.train.trainer import Schedule, Trainer, prepare_step
from student_trainer.train.validate import Validator

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("resume", "teacher", "client", "log", "runtime", "out", "data")
"""Settings that a resumed run may change: where and how it runs. Another runtime changes the last bits."""


def run(settings: TrainConfig) -> int:
    """Trains; prints the summary as JSON on stdout."""
    start = time.monotonic()
    device = pick_device(settings.runtime.device)
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    store = Store(settings.data)
    resumed = _claim_directory(settings, store)
    teacher, revision = _connect(settings, store)
    try:
        session = Session(settings, store, teacher, revision, device, resumed)
        session.train()
    finally:
        teacher.close()
    summary = session.summary() | {"seconds": round(time.monotonic() - start, 1)}
    files.write_json(settings.out / "summary.json", summary)
    print(json.dumps(summary))
    return 0


def _connect(settings: TrainConfig, store: Store) -> tuple[Teacher, str]:
    """The teacher and its weights revision; refuses one that does not fit before anything is computed."""
    if not settings.distils:
        log.info("training without a teacher (%s)", "teacher=none" if settings.teacher == "none" else "weight 0")
        return NullTeacher(), ""
    teacher = GrpcTeacher(settings.teacher, settings.client)
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


def _claim_directory(settings: TrainConfig, store: Store) -> Checkpoint | None:
    """The checkpoint to resume from, if any; refuses to mix two runs in one directory."""
    last = settings.out / "checkpoints" / "last.pt"
    if settings.resume:
        if not last.exists():
            log.info("%s has no checkpoint yet; starting at step 0", settings.out)
            return None
        resumed = checkpoints.load(last)
        _check_resumable(settings, store, resumed)
        return resumed
    if settings.out.exists() and (not settings.out.is_dir() or any(settings.out.iterdir())):
        raise ConfigError(f"{settings.out} is not empty; go on with --resume, or choose another --out")
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
    """One run: everything built from the settings, and the loop over epochs."""

    def __init__(
        self,
        settings: TrainConfig,
        store: Store,
        teacher: Teacher,
        revision: str,
        device: torch.device,
        resumed: Checkpoint | None,
    ) -> None:
        self.settings, self.store, self.revision, self.device = settings, store, revision, device
        network = RoadNetwork.load(store)
        train, val = store.trips("train", settings.batch.cache), store.trips("val", settings.batch.cache)
        if settings.batch.val_trips:
            val = val.take(_choose_trips(val, settings, "val"))
        statistics = store.manifest["statistics"]
        self.scale = TimeScale(statistics["mu"], statistics["sigma"])

        torch.manual_seed(settings.seed)
        self.model = HOSER(settings.model, network).to(device)
        optimizer = build_optimizer(self.model, settings.optim)
        self.precision = Precision(settings.runtime, device)
        progress = Progress()
        if resumed is not None:
            progress = self._restore(resumed, optimizer)
        if settings.runtime.compile:
            self.model.trajectory_encoder.compile(dynamic=True)
            self.model.navigator.compile(dynamic=True)

        asked = teacher if settings.distils else None
        self.feed = Feed(network, train, settings.batch, settings.distill, asked, device)
        chosen = _choose_trips(train, settings)
        order = TripOrder(
            chosen, train.lengths[chosen], settings.optim.batch_size, settings.batch.bucket_batches, settings.seed
        )
        self.schedule = Schedule(order, settings.optim.accumulation, settings.optim.epochs)
        val_feed = Feed(network, val, settings.batch, settings.distill, asked, device)
        self.validator = Validator(
            val_feed, val, settings.optim.batch_size, settings.distill, self.scale, self.precision, device
        )
        self.trainer = Trainer(
            self.model, optimizer, settings, self.scale, self.precision, device, self.schedule.total_steps, progress
        )
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
        """Trains from where the run stands to the end; an interrupt leaves a checkpoint."""
        config.save(self.settings, "train", self.settings.out / "config.yaml")
        logbook = Logbook(self.settings, self.progress.step)
        try:
            self._loop(logbook)
        except KeyboardInterrupt:
            self._save("last")
            log.info("interrupted; checkpoint at step %d, go on with --resume", self.progress.step)
            raise
        finally:
            logbook.close()
        self._export_best()

    def _loop(self, logbook: Logbook) -> None:
        plan = self.schedule.from_step(self.progress.step)
        lookahead = self.settings.client.lookahead
        bar = tqdm.tqdm(
            total=self.schedule.total_steps,
            initial=self.progress.step,
            unit="step",
            disable=None if self.settings.log.progress else True,
            file=sys.stderr,
        )
        with bar, Prefetcher(lambda planned: prepare_step(self.feed, planned), plan, lookahead) as steps:
            mark, waited = time.perf_counter(), time.perf_counter()
            for step in steps:
                self.trainer.stopwatch.seconds["data_wait"] += time.perf_counter() - waited
                self.trainer.train_step(step)
                bar.update()
                if self.progress.step % self.settings.log.every == 0 or step.plan.ends_epoch:
                    metrics = self.trainer.take_metrics(time.perf_counter() - mark)
                    logbook.write(self.progress.step, metrics)
                    bar.set_postfix(_brief(metrics))
                    mark = time.perf_counter()
                if step.plan.ends_epoch:
                    self._end_epoch(step.plan.epoch, logbook)
                    mark = time.perf_counter()
                elif self._is_checkpoint_due():
                    self._save("last")
                waited = time.perf_counter()

    def _is_checkpoint_due(self) -> bool:
        every = self.settings.log.checkpoint_every
        return every > 0 and self.progress.step % every == 0

    def _end_epoch(self, epoch: int, logbook: Logbook) -> None:
        metrics = self.validator.measure(self.model)
        logbook.write(self.progress.step, {f"val/{name}": value for name, value in metrics.items()})
        log.info("epoch %d: %s", epoch + 1, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        self.progress.history.append({"epoch": epoch + 1, "step": self.progress.step, **metrics})
        if metrics["accuracy"] > self.progress.best_accuracy:
            self.progress.best_accuracy, self.progress.best_epoch = metrics["accuracy"], epoch + 1
            self._save("best")
        self._save("last")

    def _save(self, name: str) -> None:
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
        )
        checkpoints.save(self.settings.out / "checkpoints" / f"{name}.pt", content)

    def _restore(self, resumed: Checkpoint, optimizer: torch.optim.Optimizer) -> Progress:
        if resumed.teacher_revision != self.revision:
            raise CompatibilityError(
                f"the run was distilled from teacher weights {resumed.teacher_revision or 'none'}, "
                f"the teacher serves {self.revision or 'none'}; serve the same teacher file to resume"
            )
        upstream.load_into(self.model, resumed.model)
        optimizer.load_state_dict(resumed.optimizer)
        self.precision.scaler.load_state_dict(resumed.scaler)
        log.info("resuming at step %d", resumed.progress.step)
        return resumed.progress

    def _export_best(self) -> None:
        best = checkpoints.load(self.settings.out / "checkpoints" / "best.pt")
        upstream.load_into(self.model, best.model)
        checkpoints.save_tensors(self.settings.out / "hoser.pth", upstream.export(self.model))

    def summary(self) -> dict[str, Any]:
        """The result of a finished run."""
        best = self.progress.history[self.progress.best_epoch - 1]
        return {
            "out": str(self.settings.out),
            "best": best,
            "last": self.progress.history[-1],
            "steps": self.progress.step,
            "bad_steps": self.progress.bad_steps,
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
