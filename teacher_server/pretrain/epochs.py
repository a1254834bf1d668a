"""What each epoch trains on, a function of the seed, and how much work is left.

The order of trips is drawn epoch by epoch. Who knows the generator's state at an epoch's beginning draws the same spans
and batches again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from shared.arrays import Int64
from shared.errors import FileFormatError
from shared.vocab import Vocabulary
from teacher_server.lmtad.model import Architecture
from teacher_server.pretrain.checkpoint import Progress
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import Corpus, Spans, draw_spans, make_batches

FORWARD_SHARE = 1 / 3
"""Of the work of training on a token, what predicting one takes: a forward pass, whose backward pass takes two."""


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
    """What an epoch trains on.

    Attributes:
        spans: one a trip.
        batches: trips of each step, int64 each.
        tokens: int64 [steps], targets of each.
    """

    spans: Spans
    batches: list[Int64]
    tokens: Int64

    @property
    def steps(self) -> int:
        """How many it has, if the run does not end within it."""
        return len(self.batches)


class Epochs:
    """The epochs of a run.

    Attributes:
        order: state of the generator at the beginning of the epoch that is drawn next.
    """

    def __init__(self, settings: PretrainConfig, train: Corpus, val: Corpus, block_size: int) -> None:
        self._settings, self._train, self._block_size = settings, train, block_size
        self._rng = np.random.default_rng(settings.seed)
        self.order: dict[str, Any] = dict(self._rng.bit_generator.state)
        self._measuring = FORWARD_SHARE * int(np.minimum(val.lengths + 1, block_size).sum())

    def restore(self, order: dict[str, Any]) -> None:
        """Goes on with the epoch that begins with this state; raises `FileFormatError` if it is none."""
        try:
            self._rng.bit_generator.state = order
        except (TypeError, ValueError, LookupError, OverflowError) as error:
            raise FileFormatError(f"the checkpoint's state of the order of trips is damaged: {error}") from None
        self.order = order

    def draw(self, progress: Progress) -> Epoch:
        """The epoch that is to be trained, or gone on with."""
        settings = self._settings
        self._rng.bit_generator.state = self.order
        spans = draw_spans(self._train, self._block_size - 1, settings.crop_probability, self._rng)
        batches = make_batches(spans.lengths + 1, settings.batch_tokens, self._rng)
        if settings.max_steps is not None:
            batches = batches[: settings.max_steps - (progress.step - progress.batch)]
        return Epoch(spans, batches, np.array([(spans.lengths[batch] + 1).sum() for batch in batches], np.int64))

    def end(self) -> None:
        """The drawn epoch is done: the next one follows."""
        self.order = dict(self._rng.bit_generator.state)

    def work_left(self, epoch: Epoch, progress: Progress) -> float:
        """Tokens to the end of the last epoch, of which patience may save some; measured ones count a third."""
        settings = self._settings
        work = float(epoch.tokens[progress.batch :].sum()) + self._measuring
        epochs = settings.epochs - progress.epoch - 1
        steps = epochs * epoch.steps
        if settings.max_steps is not None:
            steps = min(steps, settings.max_steps - progress.step - (epoch.steps - progress.batch))
            epochs = -(-steps // epoch.steps)
        return work + steps * float(epoch.tokens.mean()) + epochs * self._measuring


def find_architecture(settings: PretrainConfig, vocabulary: Vocabulary, *corpora: Corpus) -> Architecture:
    """The sizes of the model that the settings and the longest trip ask for."""
    longest = max(int(corpus.lengths.max()) for corpus in corpora)
    return Architecture(
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_embd=settings.n_embd,
        block_size=settings.block_size or max(2, min(longest + 2, settings.max_block_size)),
        vocab_size=vocabulary.size,
        bias=settings.bias,
    )
