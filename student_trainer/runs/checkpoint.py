"""Checkpoints of `train`. The place in the data is not in one, for the order of trips is a function of seed and step.

last.pt, last.1.pt, ...     the newest and those before it; there is a whole last.pt at any moment
best.pt                     highest validation accuracy
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import files
from shared.training.checkpoints import AS_IT_IS, Format, load_tensors

__all__ = ["Checkpoint", "Progress", "is_checkpoint", "load", "load_newest", "load_tensors", "save", "save_tensors"]

FAMILY = "hoser-checkpoint/"
FORMAT, BEFORE = f"{FAMILY}4", (f"{FAMILY}3", f"{FAMILY}2")
"""Of checkpoints; those before, which are read, lack `sampled`, and the last of them `distillation`."""


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        bad_steps: steps skipped for non-finite values.
        missed_micro_batches: shares of micro-batches trained without the teacher, which had failed; all ranks.
        missed_positions: theirs.
        best_accuracy: best validation accuracy so far, and `best_epoch` its epoch; -1 before the first.
        history: one record of validation metrics per epoch done.
        extended: where the run got more epochs than it was begun with: `step`, `from_epochs`, `to_epochs`.
    """

    step: int = 0
    bad_steps: int = 0
    missed_micro_batches: int = 0
    missed_positions: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    extended: list[dict[str, int]] = dataclasses.field(default_factory=list)

    __pydantic_config__ = AS_IT_IS


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        model: weights under upstream's names, without causal masks.
        optimizer, scaler: their `state_dict`s.
        progress: where the run stands.
        config: the run's resolved settings.
        store: fingerprint of the store.
        mu, sigma: standardisation of log1p seconds.
        teacher_revision: weights of the teacher, empty without one.
        sums: totals and counts since the last line of metrics, by name.
        random_state: of torch's generators, by device type. Nothing random happens after the initial weights now; a
            layer that draws numbers would go on where it was.
        torch: version that saved this.
        distillation: what is trained or fitted beside the model and not part of it: the destination-free head's
            weights, the destination-aware target's coefficients.
        sampled: digest of the sampled trips that are mixed in; empty without.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: Progress
    config: dict[str, Any]
    store: str
    mu: float
    sigma: float
    teacher_revision: str
    sums: dict[str, tuple[float, int]]
    random_state: dict[str, Tensor]
    torch: str
    distillation: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    sampled: str = ""

    __pydantic_config__ = AS_IT_IS


_FORMAT = Format(Checkpoint, FORMAT, *BEFORE)
save, load, load_newest = _FORMAT.save, _FORMAT.load, _FORMAT.load_newest


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """`torch.save`, atomically."""
    with files.atomic_path(path) as temporary:
        torch.save(values, temporary)


def is_checkpoint(values: dict[str, Any]) -> bool:
    """Whether the content of a file is a checkpoint of ours rather than a bare `state_dict`."""
    return str(values.get("format")).startswith(FAMILY)
