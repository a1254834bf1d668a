"""Checkpoints of `pretrain`: everything that a run needs to go on bit for bit, its best weights among it.

A `torch.save` archive of tensors and plain values, written atomically, read with `weights_only=True` after the checksum
of every record: nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from shared import files, generations, torch_archive
from shared.errors import FileFormatError

FORMAT = "lmtad-pretraining/1"

_AS_IT_IS = pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True, revalidate_instances="always")
"""Types must be those that are written; nothing is converted."""


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

    __pydantic_config__ = _AS_IT_IS


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

    __pydantic_config__ = _AS_IT_IS


_CONTENT = pydantic.TypeAdapter(Checkpoint)
"""Looks at the types; what it makes is not used."""


def save(path: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint; a crash leaves the old file or the new one, and `keep` of them stay."""
    values = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    values["progress"] = dataclasses.asdict(checkpoint.progress)
    with files.atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **values}, temporary)
        generations.rotate(path, keep)


def load_newest(path: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, of `path` and those before it; None if there is none.

    Raises:
        FileFormatError: there are some, and none can be read.
    """
    return generations.newest(path, load, lambda checkpoint: checkpoint.progress.step)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        FileFormatError: the file is missing, damaged, not a checkpoint of `pretrain`, or holds code.
    """
    torch_archive.check(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an untrusted file can make the parser fail in any way
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{path} is not a readable checkpoint: {reason or type(error).__name__}") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of `pretrain` ({FORMAT})")
    try:
        checkpoint = Checkpoint(**{**values, "progress": Progress(**values["progress"])})
        _CONTENT.validate_python(checkpoint)
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None
    except pydantic.ValidationError as error:
        issue = error.errors()[0]
        raise FileFormatError(f"{path} is damaged: {'.'.join(map(str, issue['loc']))}: {issue['msg']}") from None
    return checkpoint
