"""One run: the loop over epochs, what it writes on the way, and how it goes on after an interruption.

The order of trips is drawn from the seed, epoch by epoch. A checkpoint holds the generator's state at the epoch's
beginning and the number of steps done since, so that the same spans and batches are drawn again, and the rest follows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from shared import config, files
from shared import progress as bars
from shared.errors import TrainingError
from shared.sinks import WandbRun
from shared.store import Store
from shared.teacher_file import Weights
from shared.training.forecast import Forecast, to_go
from shared.training.logbook import Logbook
from shared.training.ranks import RankLost
from teacher_server.pretrain import checkpoint as checkpoints
from teacher_server.pretrain.checkpoint import Checkpoint, Progress
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import fingerprint_of, read_corpus
from teacher_server.pretrain.epochs import Epoch, Epochs, find_architecture
from teacher_server.pretrain.layout import RunFiles
from teacher_server.pretrain.trainer import Surroundings, Trainer, learning_rate

log = logging.getLogger(__name__)


class Session:
    """One run.

    Attributes:
        trainer: model and optimiser.
        architecture: of the model.
        progress: where the run stands.
        best: weights with the lowest held-out loss so far.
    """

    def __init__(
        self, settings: PretrainConfig, store: Store, around: Surroundings, resumed: Checkpoint | None = None
    ) -> None:
        """At its first step, or where the checkpoint `resumed` was written.

        Raises:
            ConfigError: it has fewer than `train_trips`.
            DataError: the store has no trips to learn from.
            FileFormatError: store or checkpoint are damaged.
        """
        self._settings, self._store, self._around = settings, store, around
        vocabulary = store.tokeniser.vocabulary
        self._train = read_corpus(store, "train", settings.train_trips, settings.sample_seed)
        self._val = read_corpus(store, "val")
        self.architecture = find_architecture(settings, vocabulary, self._train, self._val)
        self.trainer = Trainer(settings, self.architecture, vocabulary, around)
        self.progress, self.best = Progress(), dict[str, torch.Tensor]()
        self._epochs = Epochs(settings, self._train, self._val, self.architecture.block_size)
        self._forecast, self._is_forecast_said = Forecast(), False
        self._saved, self._saved_at = time.monotonic(), (-1, -1)
        self._rate = self._norm = 0.0
        log.info(
            "%d trips, %d cells, block of %d tokens, %d weights on %s",
            len(self._train.lengths), vocabulary.cells, self.architecture.block_size, self.trainer.parameters,
            around.device,
        )  # fmt: skip
        if resumed is not None:
            self.trainer.restore(resumed)
            self.progress, self.best = resumed.progress, resumed.best
            self._epochs.restore(resumed.order)
            log.info("resuming at step %d", self.progress.step)

    def best_weights(self) -> Weights:
        """The weights to keep."""
        if not self.best:
            raise TrainingError("nothing was trained")
        return {name: tensor.numpy() for name, tensor in self.best.items()}

    def train(self) -> None:
        """Trains from where the run stands to the end, and leaves a checkpoint there or where it is interrupted.

        Raises:
            TrainingError: the loss is not finite, or another rank has gone.
            KeyboardInterrupt: a signal has come.
        """
        self._around.ranks.check_same(self.trainer.model.parameters(), f"at step {self.progress.step}")
        logbook = self._open_logbook() if self._around.ranks.is_first else None
        try:
            self._loop(logbook)
        except (KeyboardInterrupt, RankLost) as error:
            self._save()
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            log.info("%s; checkpoint at step %d, go on with --resume", reason, self.progress.step)
            raise
        finally:
            if logbook is not None:
                logbook.close()
        self._save()

    def _loop(self, logbook: Logbook | None) -> None:
        while not self._is_done():
            epoch = self._epochs.draw(self.progress)
            self._check_warm_up(epoch)
            for number in self._bar(epoch):
                self._check_wishes()
                self._step(epoch, number)
                if self.progress.step % self._settings.log.every == 0:
                    self._report(logbook, epoch)
            self._check_wishes()
            self._end_epoch(epoch, logbook)

    def _check_warm_up(self, epoch: Epoch) -> None:
        """Warns, once, of a run that ends before its learning rate has risen."""
        settings = self._settings
        steps = min(settings.epochs * epoch.steps, settings.max_steps or math.inf)
        if self.progress.step == 0 and settings.warmup_steps >= steps and self._around.ranks.is_first:
            log.warning(
                "the learning rate rises in all of about %d steps (warmup_steps=%d), and the teacher hardly learns; "
                "train for more epochs, or set warmup_steps to a tenth of the steps", steps, settings.warmup_steps,
            )  # fmt: skip

    def _is_done(self) -> bool:
        progress, settings = self.progress, self._settings
        is_stale = 0 < settings.patience <= progress.stale
        if progress.batch == 0 and is_stale and progress.epoch < settings.epochs:
            log.info("no better held-out loss for %d epochs: the run ends early", progress.stale)
        ends = is_stale or progress.epoch >= settings.epochs or progress.step == settings.max_steps
        return ends and progress.batch == 0  # an epoch that has begun has still to be measured

    def _bar(self, epoch: Epoch) -> Iterator[int]:
        """The steps that are left of an epoch."""
        shows = self._settings.log.progress and self._around.ranks.is_first
        self._forecast.begin()
        with bars.bar(
            range(self.progress.batch, epoch.steps), shown=shows, desc=f"epoch {self.progress.epoch + 1}", unit="step",
            leave=False, dynamic_ncols=True, initial=self.progress.batch, total=epoch.steps,
        ) as bar:  # fmt: skip
            yield from bar

    def _check_wishes(self) -> None:
        """Ends the run, or writes a checkpoint, where one rank wishes it."""
        settings, step = self._settings, self.progress.step
        minutes = (time.monotonic() - self._saved) / 60
        is_due = 0 < settings.checkpoint_minutes <= minutes or (
            step > 0 and settings.checkpoint_every > 0 and step % settings.checkpoint_every == 0
        )
        is_due = is_due and self._saved_at != (step, self.progress.epoch) and self._around.ranks.is_first
        wishes = self._around.ranks.sums(int(self._around.stop.requested), int(is_due))
        if wishes[0]:
            raise KeyboardInterrupt
        if wishes[1]:
            self._save()
            self._forecast.begin()

    def _step(self, epoch: Epoch, number: int) -> None:
        progress = self.progress

        def done(loss: float, norm: float) -> None:
            progress.step, progress.batch = progress.step + 1, number + 1
            progress.epoch_loss += loss
            progress.loss, progress.losses = progress.loss + loss, progress.losses + 1
            self._norm = norm

        share = (progress.epoch + number / epoch.steps) / self._settings.epochs
        self._rate = learning_rate(self._settings, progress.step, share)
        self.trainer.train_step(self._train, epoch.spans, epoch.batches[number], progress.step, self._rate, done)
        self._forecast.add(int(epoch.tokens[number]))
        if not self._is_forecast_said and self._forecast.is_worth_saying:
            self._is_forecast_said = True
            self._say_forecast(epoch)

    def _say_forecast(self, epoch: Epoch) -> None:
        seconds = self._forecast.seconds_for(self._epochs.work_left(epoch, self.progress))
        if seconds is not None:
            log.info("%.0f tokens/s: %s; %d steps an epoch", self._forecast.pace, to_go(seconds), epoch.steps)

    def _report(self, logbook: Logbook | None, epoch: Epoch) -> None:
        progress = self.progress
        metrics = {
            "train/loss": progress.loss / progress.losses,
            "train/learning_rate": self._rate,
            "train/gradient_norm": self._norm,
        }
        if (seconds := self._forecast.seconds_for(self._epochs.work_left(epoch, progress))) is not None:
            metrics |= {"perf/tokens_per_s": self._forecast.pace, "perf/seconds_left": seconds}
        with self._around.stop.shield():
            if logbook is not None:
                logbook.write(progress.step, {name: files.finite(value) for name, value in metrics.items()})
            progress.loss, progress.losses = 0.0, 0

    def _end_epoch(self, epoch: Epoch, logbook: Logbook | None) -> None:
        held_out = self.trainer.held_out(self._val)
        progress = self.progress
        self._around.ranks.check_same(self.trainer.model.parameters(), f"at step {progress.step}")
        log.info(
            "epoch %d/%d: train %.4f, held out %.4f nats/token, next cell %.2f %%",
            progress.epoch + 1, self._settings.epochs, progress.epoch_loss / max(1, epoch.steps), held_out.loss,
            100 * held_out.accuracy,
        )  # fmt: skip
        with self._around.stop.shield():
            progress.epoch, progress.batch, progress.epoch_loss = progress.epoch + 1, 0, 0.0
            progress.stale += 1
            self._epochs.end()
            if not progress.best_epoch or held_out.loss < progress.best_loss:
                progress.best_loss, progress.best_accuracy = held_out.loss, held_out.accuracy
                progress.best_epoch, progress.stale = progress.epoch, 0
                self.best = {n: tensor.cpu().clone() for n, tensor in self.trainer.state()["model"].items()}
            if logbook is not None:
                logbook.write(progress.step, {"val/loss": held_out.loss, "val/accuracy": held_out.accuracy})

    def _open_logbook(self) -> Logbook:
        settings, run = self._settings, RunFiles(self._settings.out)
        config.save(settings, "pretrain", run.config)
        if not settings.resume:
            run.remove_earlier()
        wandb = WandbRun(
            asked=settings.log.wandb,
            project=settings.log.wandb_project,
            name=settings.log.wandb_name or settings.out.name,
            config=settings.model_dump(mode="json"),
            job_type="pretrain",
        )
        return Logbook(run.metrics, self.progress.step, settings.log.tensorboard, wandb)

    def _save(self) -> None:
        """Writes a checkpoint, on the first rank; the others' would be the same."""
        self._saved, self._saved_at = time.monotonic(), (self.progress.step, self.progress.epoch)
        if not self._around.ranks.is_first:
            return
        state: dict[str, Any] = self.trainer.state()
        content = Checkpoint(
            best=self.best,
            progress=self.progress,
            config=self._settings.model_dump(mode="json"),
            store=fingerprint_of(self._store),
            order=self._epochs.order,
            torch=str(torch.__version__),
            **state,
        )
        with self._around.stop.shield():
            checkpoints.save(RunFiles(self._settings.out).last, content, self._settings.keep_checkpoints)
