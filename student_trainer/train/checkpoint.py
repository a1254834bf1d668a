"""Checkpoints: everything that a run needs to go on, written atomically, read without pickle.

A checkpoint is a `torch.save` archive of tensors and plain values, read with
`weights_only=True`. Random state is not among them because nothing random happens after
the initial weights: the order of trips is a function of seed and step.
"""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import files
from shared.errors import FileFormatError

FORMAT = "hoser-checkpoint/1"


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        bad_steps: steps skipped for non-finite values.
        best_accuracy: best validation accuracy so far, and `best_epoch` its epoch; -1 before the first.
        history: one record of validation metrics per epoch done.
    """

    step: int = 0
    bad_steps: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


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


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; a crash leaves the old file or the new one."""
    values = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    values["progress"] = dataclasses.asdict(checkpoint.progress)
    save_tensors(path, {"format": FORMAT, **values})


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """`torch.save`, atomically."""
    with files.atomic_path(path) as temporary:
        torch.save(values, temporary)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        FileFormatError: the file is missing, truncated, not a checkpoint, or holds code.
    """
    values = load_tensors(path)
    if values.pop("format", None) != FORMAT:
        raise FileFormatError(f"{path} is not a checkpoint of this system ({FORMAT})")
    try:
        return Checkpoint(**{**values, "progress": Progress(**values["progress"])})
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None


def is_checkpoint(values: dict[str, Any]) -> bool:
    """Whether the content of a file is a checkpoint of ours rather than a bare `state_dict`."""
    return values.get("format") == FORMAT


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads a file of tensors and plain values; nothing in it is executed.

    Raises:
        FileFormatError: the file is missing, truncated, or holds anything else.
    """
    if not path.is_file():
        raise FileFormatError(f"no weights at {path}")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise FileFormatError(
            f"{path} is not a file of plain weights, refused without executing it: {reason}"
        ) from None
    except (RuntimeError, zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or "unexpected end").splitlines()[0]
        raise FileFormatError(f"{path} is damaged or truncated: {reason}") from None
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} holds a {type(values).__name__}, expected a dictionary of weights")
    return values
