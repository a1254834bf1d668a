"""`pretrain`: trains an LM-TAD teacher on the trips of a store.

    trips -> road tokens -> spans (whole trips and crops) -> batches of similar length -> cross-entropy

A sequence is SOT, cells, EOT; repeated cells are kept, because the teacher is asked once a road. Trainers
ask for windows: SOT and the last few tokens, placed from position 0. A model that has seen whole trips only
knows no such context, so a share of the sequences (`crop_probability`) starts at a uniformly drawn place of
its trip. A trip longer than the block contributes one block of it, from a uniformly drawn place.

The weights with the lowest held-out loss are written: full history, validation trips, nats a token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

import shared
from shared import claims, config, teacher_file
from shared import progress as bars
from shared.errors import TrainingError
from shared.store import Store
from shared.teacher_file import Weights
from shared.vocab import Vocabulary
from teacher_server.lmtad.config import OVERWRITE, PretrainConfig
from teacher_server.lmtad.corpus import Corpus, Spans, draw_spans, make_batch, make_batches, read_corpus
from teacher_server.lmtad.device import find_autocast, find_device
from teacher_server.lmtad.export import summary
from teacher_server.lmtad.model import LMTAD, Architecture

log = logging.getLogger(__name__)

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How well validation trips are predicted.

    Attributes:
        loss: nats a token, EOT included.
        accuracy: share of the cells that are the teacher's most probable next cell.
    """

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The weights to keep and what they reached."""

    weights: Weights
    held_out: HeldOut
    epoch: int


def run(settings: PretrainConfig) -> None:
    """Trains, writes the teacher file, prints one line of JSON; nothing is written if it is interrupted.

    Raises:
        DataError: the store has no trips to learn from.
        TrainingError: the loss is not finite.
    """
    with claims.file(settings.out):
        claims.check_file(settings.out, settings.overwrite, OVERWRITE)
        log.info("settings: %s", config.in_force(settings))
        _pretrain(settings)


def _pretrain(settings: PretrainConfig) -> None:
    started = time.monotonic()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    store = Store(settings.data)
    trainer = Trainer(settings, store)
    best = trainer.fit()
    seconds = round(time.monotonic() - started, 1)
    provenance = {
        "made_by": f"pretrain {shared.__version__}",
        "store_fingerprint": store.fingerprint,
        "held_out_loss": best.held_out.loss,
        "next_cell_accuracy": best.held_out.accuracy,
        "best_epoch": best.epoch,
        "steps": trainer.step,
        "seconds": seconds,
        "settings": settings.model_dump(mode="json", exclude={"data", "out", "overwrite"}),
    }
    header = teacher_file.write(settings.out, best.weights, trainer.architecture.to_dict(), store.tokeniser, provenance)
    result = {
        "held_out_loss": best.held_out.loss,
        "next_cell_accuracy": best.held_out.accuracy,
        "epochs": trainer.epoch,
        "best_epoch": best.epoch,
        "steps": trainer.step,
        "seconds": seconds,
    }
    print(json.dumps(result | summary(settings.out, header, trainer.parameters)))


class Trainer:
    """One run: model, optimiser and the data, from a seed.

    Attributes:
        architecture: of the model that is trained.
        parameters: its number of weights.
        step, epoch: optimiser steps and epochs done.
    """

    def __init__(self, settings: PretrainConfig, store: Store) -> None:
        """Reads the data and makes a fresh model."""
        self._settings = settings
        self._vocabulary = store.tokeniser.vocabulary
        self._train, self._val = (read_corpus(store, split) for split in ("train", "val"))
        self.architecture = _architecture(settings, self._vocabulary, self._train, self._val)
        torch.manual_seed(settings.seed)
        self._rng = np.random.default_rng(settings.seed)
        self._device = find_device(settings.device)
        self._model = LMTAD(self.architecture, settings.dropout).to(self._device)
        self._optimiser = _optimiser(settings, self._model)
        self._autocast = find_autocast(settings.dtype, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._autocast is torch.float16)
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self.step = self.epoch = 0
        log.info(
            "%d trips, %d cells, block of %d tokens, %d weights on %s",
            len(self._train.lengths), self._vocabulary.cells, self.architecture.block_size, self.parameters,
            self._device,
        )  # fmt: skip

    def fit(self) -> Best:
        """Trains for the configured epochs or steps and returns the best weights by held-out loss."""
        best: Best | None = None
        while not self._is_done():
            train_loss = self._train_epoch()
            self.epoch += 1
            held_out = self._held_out()
            log.info(
                "epoch %d/%d: train %.4f, held out %.4f nats/token, next cell %.2f %%",
                self.epoch, self._settings.epochs, train_loss, held_out.loss, 100 * held_out.accuracy,
            )  # fmt: skip
            if best is None or held_out.loss < best.held_out.loss:
                weights = {name: array.copy() for name, array in self._model.weights().items()}
                best = Best(weights, held_out, self.epoch)
        if best is None:
            raise TrainingError("nothing was trained")
        return best

    def _is_done(self) -> bool:
        return self.epoch >= self._settings.epochs or self.step == self._settings.max_steps

    def _train_epoch(self) -> float:
        """One pass over the trips; returns the mean loss of its steps."""
        settings = self._settings
        self._model.train()
        spans = draw_spans(self._train, self.architecture.block_size - 1, settings.crop_probability, self._rng)
        batches = make_batches(spans.lengths + 1, settings.batch_tokens, self._rng)
        if settings.max_steps is not None:
            batches = batches[: settings.max_steps - self.step]
        losses = []
        with bars.bar(batches, desc=f"epoch {self.epoch + 1}", unit="step", leave=False, dynamic_ncols=True) as bar:
            for number, trips in enumerate(bar):
                progress = (self.epoch + number / len(batches)) / settings.epochs
                losses.append(self._train_step(*self._batch(self._train, spans, trips), progress))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        return float(np.mean(losses))

    def _train_step(self, inputs: Tensor, targets: Tensor, progress: float) -> float:
        settings = self._settings
        if settings.max_steps is not None:
            progress = max(progress, self.step / settings.max_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.step, progress)
        self._optimiser.zero_grad()
        loss = self._loss(self._logits(inputs), targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {self.step}; lower learning_rate or grad_clip")
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.grad_clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.step += 1
        return value

    @torch.no_grad()
    def _held_out(self) -> HeldOut:
        """Loss and accuracy on the validation trips from their origin, up to a block of each."""
        self._model.eval()
        spans = Spans(self._val.starts, np.minimum(self._val.lengths, self.architecture.block_size - 1))
        loss = correct = 0.0
        for trips in make_batches(spans.lengths + 1, self._settings.batch_tokens, None):
            inputs, targets = self._batch(self._val, spans, trips)
            logits = self._logits(inputs)
            loss += float(self._loss(logits, targets, reduction="sum"))
            cells = self._vocabulary.cells
            correct += float(((logits[..., :cells].argmax(-1) == targets) & (targets < cells)).sum())
        tokens = int((spans.lengths + 1).sum())
        ends = int(np.count_nonzero(spans.lengths == self._val.lengths))
        return HeldOut(loss / tokens, correct / (tokens - ends))

    def _batch(self, corpus: Corpus, spans: Spans, trips: Int64) -> tuple[Tensor, Tensor]:
        inputs, targets = make_batch(corpus, spans, trips, self._vocabulary)
        return torch.from_numpy(inputs).to(self._device), torch.from_numpy(targets).to(self._device)

    def _logits(self, inputs: Tensor) -> Tensor:
        enabled = self._autocast is not None
        context = torch.autocast(self._device.type, self._autocast) if enabled else contextlib.nullcontext()
        with context:
            logits: Tensor = self._model(inputs)
        return logits

    def _loss(self, logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in float32 over what is not padding."""
        flat = logits.flatten(0, 1).float()
        return functional.cross_entropy(flat, targets.flatten(), ignore_index=self._vocabulary.pad, reduction=reduction)


def learning_rate(settings: PretrainConfig, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine from the peak to `min_learning_rate` as progress goes from 0 to 1."""
    low = min(settings.min_learning_rate, settings.learning_rate)
    cosine = low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def _architecture(settings: PretrainConfig, vocabulary: Vocabulary, *corpora: Corpus) -> Architecture:
    longest = max(int(corpus.lengths.max()) for corpus in corpora)
    return Architecture(
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_embd=settings.n_embd,
        block_size=settings.block_size or max(2, min(longest + 2, settings.max_block_size)),
        vocab_size=vocabulary.size,
        bias=settings.bias,
    )


def _optimiser(settings: PretrainConfig, model: LMTAD) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)
