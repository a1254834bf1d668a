"""The model, its optimiser, a step, and how well validation trips are predicted.

A sequence is SOT, cells, EOT; repeated cells are kept, because the teacher is asked once a road. Trainers
ask for windows: SOT and the last few tokens, placed from position 0. A model that has seen whole trips only
knows no such context, so a share of the sequences (`crop_probability`) starts at a uniformly drawn place of
its trip. A trip longer than the block contributes one block of it, from a uniformly drawn place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared import files
from shared.arrays import Int64
from shared.errors import TrainingError
from shared.training.states import random_state, restore_optimizer, restore_scaler, set_random_state
from shared.training.stop import StopSignals
from shared.training.torch_ranks import Ranks
from shared.vocab import Vocabulary
from teacher_server.lmtad.device import find_autocast
from teacher_server.lmtad.model import LMTAD, Architecture, check_shapes
from teacher_server.pretrain.checkpoint import Checkpoint
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import Corpus, Spans, cut, make_batch, make_batches

MEMORY_SHARE = 0.6
"""Of an accelerator's free memory that activations may take."""
ACTIVATION_VALUES = 34
"""Bytes of two-byte activations that a block keeps for the backward pass, a token and a unit of width: the usual count
for a block with dropout whose attention keeps no matrix of scores."""
LOGIT_BYTES = 16
"""Bytes a token and a word of the vocabulary: float32 logits, their log-softmax, and the gradients of both."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How well validation trips are predicted.

    Attributes:
        loss: nats a token, EOT included.
        accuracy: share of the cells that are the teacher's most probable next cell.
    """

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Where and with whom a run computes.

    Attributes:
        device: of this rank.
        ranks: who trains together.
        stop: the signals that end the run between two steps.
    """

    device: torch.device
    ranks: Ranks
    stop: StopSignals


class Trainer:
    """Model and optimiser, from a seed.

    Attributes:
        model: what is trained.
        parameters: its number of weights.
        random: states of torch's generators after the last whole step.
    """

    def __init__(
        self, settings: PretrainConfig, architecture: Architecture, vocabulary: Vocabulary, around: Surroundings
    ) -> None:
        """Makes a fresh model, the same on every rank."""
        self._settings, self._vocabulary, self._around = settings, vocabulary, around
        torch.manual_seed(settings.seed)
        self.model = LMTAD(architecture, settings.dropout).to(around.device)
        self._learned = list(self.model.parameters())
        self._optimiser = _optimiser(settings, self.model)
        self._autocast = find_autocast(settings.dtype, around.device)
        self._scaler = torch.amp.GradScaler(around.device.type, enabled=self._autocast is torch.float16)
        self._most_tokens = settings.micro_batch_tokens or find_budget(architecture, self._autocast, around.device)
        self.parameters = sum(parameter.numel() for parameter in self._learned)
        self.random = random_state(around.device)

    def train_step(
        self, corpus: Corpus, spans: Spans, batch: Int64, step: int, rate: float, done: Callable[[float, float], None]
    ) -> None:
        """One optimiser step, made whole or not at all.

        Args:
            corpus: what is trained on.
            spans: one a trip.
            batch: int64 [B], the trips of all ranks, the shortest first.
            step: its number, from 0.
            rate: learning rate.
            done: told the mean loss of the batch's tokens and the norm of its gradient, as a part of the step: nothing
                ends the run between the update and this.

        Raises:
            TrainingError: the loss is not finite; nothing has changed.
        """
        ranks, lengths = self._around.ranks, spans.lengths + 1
        if not ranks.is_first:  # no two drop the same units; the first one's are those of a process alone
            torch.manual_seed(int(files.digest(f"{self._settings.seed} {ranks.rank} {step}")[:15], 16))
        self.model.train()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        tokens, loss = int(lengths[batch].sum()), torch.zeros((), device=self._around.device)
        for part in cut(ranks.share(batch, lengths[batch]), lengths, self._most_tokens):
            inputs, targets = self._batch(corpus, spans, part)
            mine = self._loss(self._logits(inputs), targets) / tokens
            torch.autograd.backward(self._scaler.scale(mine))
            loss += mine.detach()
        loss = ranks.sum_gradients(self._learned, loss)
        self._scaler.unscale_(self._optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self._learned, self._settings.grad_clip)
        value, norm_is = torch.stack([loss, norm]).tolist()
        may_skip = self._scaler.is_enabled() and self._scaler.get_scale() >= 1  # and then lowers its scale
        if not math.isfinite(value) or not (math.isfinite(norm_is) or may_skip):
            raise TrainingError(
                f"the loss is {value} at step {step}, the norm of its gradient {norm_is}; "
                "lower learning_rate or grad_clip"
            )
        with self._around.stop.shield():
            self._scaler.step(self._optimiser)
            self._scaler.update()
            self.random = random_state(self._around.device)
            done(value, norm_is)

    @torch.no_grad()
    def held_out(self, corpus: Corpus) -> HeldOut:
        """Loss and accuracy on trips from their origin, up to a block of each; ranks take turns."""
        self.model.eval()
        ranks, cells = self._around.ranks, self._vocabulary.cells
        spans = Spans(corpus.starts, np.minimum(corpus.lengths, self.model.architecture.block_size - 1))
        most = min(self._settings.batch_tokens, self._most_tokens or self._settings.batch_tokens)
        loss = correct = 0.0
        for trips in make_batches(spans.lengths + 1, most, None)[ranks.rank :: ranks.world]:
            inputs, targets = self._batch(corpus, spans, trips)
            logits = self._logits(inputs)
            loss += float(self._loss(logits, targets))
            correct += float(((logits[..., :cells].argmax(-1) == targets) & (targets < cells)).sum())
        loss, correct = map(sum, zip(*ranks.gather((loss, correct)), strict=True))
        tokens = int((spans.lengths + 1).sum())
        ends = int(np.count_nonzero(spans.lengths == corpus.lengths))
        return HeldOut(loss / tokens, correct / (tokens - ends))

    def state(self) -> dict[str, Any]:
        """The fields of a checkpoint that are this one's business."""
        return {
            "model": {name: tensor.detach() for name, tensor in self.model.named_parameters()},
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": self.random,
        }

    def restore(self, found: Checkpoint) -> None:
        """Goes on where a checkpoint was written.

        Raises:
            FileFormatError: it does not hold the state of such a run.
        """
        for weights in [found.model, *([found.best] if found.best else [])]:
            check_shapes(self.model.shapes(), weights)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(found.model[name])
        restore_optimizer(self._optimiser, found.optimiser)
        restore_scaler(self._scaler, found.scaler)
        set_random_state(found.random, self._around.device)
        self.random = random_state(self._around.device)

    def _batch(self, corpus: Corpus, spans: Spans, trips: Int64) -> tuple[Tensor, Tensor]:
        inputs, targets = make_batch(corpus, spans, trips, self._vocabulary)
        device = self._around.device
        return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)

    def _logits(self, inputs: Tensor) -> Tensor:
        context: AbstractContextManager[None] = contextlib.nullcontext()
        if self._autocast is not None:
            context = torch.autocast(self._around.device.type, self._autocast)
        with context:
            logits: Tensor = self.model(inputs)
        return logits

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy in float32 over what is not padding."""
        flat = logits.flatten(0, 1).float()
        return functional.cross_entropy(flat, targets.flatten(), ignore_index=self._vocabulary.pad, reduction="sum")


def learning_rate(settings: PretrainConfig, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine from the peak to `min_learning_rate` as progress goes from 0 to 1."""
    if settings.max_steps is not None:
        progress = max(progress, step / settings.max_steps)
    low = min(settings.min_learning_rate, settings.learning_rate)
    cosine = low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def find_budget(architecture: Architecture, autocast: torch.dtype | None, device: torch.device) -> int | None:
    """Padded tokens that a device may compute at once; None: as many as there are, on the CPU."""
    if device.type == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return tokens_within(free, architecture, 4 if autocast is None else 2)


def tokens_within(free: int, architecture: Architecture, value_bytes: int) -> int:
    """Padded tokens whose activations fit `MEMORY_SHARE` of so many bytes; at least one sequence."""
    blocks = ACTIVATION_VALUES * value_bytes // 2 * architecture.n_layer * architecture.n_embd
    each = blocks + (LOGIT_BYTES + value_bytes) * architecture.vocab_size
    return max(architecture.block_size, int(MEMORY_SHARE * free) // each)


def _optimiser(settings: PretrainConfig, model: LMTAD) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)
