"""Checkpoints of `pretrain`: everything that a run needs to go on bit for bit, its best weights among it."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from shared.training.checkpoints import AS_IT_IS, Format


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done, and measured on validation trips.
        batch: steps done of the epoch that is not.
        epoch_loss: sum of their losses.
        loss, losses: sum and number of the losses since the last line of metrics.
        best_loss, best_accuracy, best_epoch: lowest held-out loss, the accuracy that goes with it and its epoch; 0
            before the first.
        stale: epochs since then.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_loss: float = 0.0
    loss: float = 0.0
    losses: int = 0
    best_loss: float = 0.0
    best_accuracy: float = 0.0
    best_epoch: int = 0
    stale: int = 0

    __pydantic_config__ = AS_IT_IS


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        model: weights, a tied head's not twice.
        best: weights with the lowest held-out loss; none before the first epoch's end.
        optimiser, scaler: their `state_dict`s.
        progress: where the run stands.
        config: its resolved settings.
        store: fingerprint of the trips and their cells.
        order: state of the generator of spans and batches at the beginning of the epoch.
        random: states of torch's generators after the last step, by device type.
        torch: version that saved this.
    """

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    progress: Progress
    config: dict[str, Any]
    store: str
    order: dict[str, Any]
    random: dict[str, Tensor]
    torch: str

    __pydantic_config__ = AS_IT_IS


_FORMAT = Format(Checkpoint, "lmtad-pretraining/1")
save, load, load_newest = _FORMAT.save, _FORMAT.load, _FORMAT.load_newest
