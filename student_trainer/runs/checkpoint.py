"""Checkpoints: everything that a run needs to go on, written atomically, checked and never executed when read.

A checkpoint is a `torch.save` archive of tensors and plain values, read with `weights_only=True` after the checksum
of every record. The place in the data is not in it, for the order of trips is a function of seed and step.

    last.pt, last.1.pt, ...     the newest and those before it; there is a whole last.pt at any moment
    best.pt                     highest validation accuracy
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from shared import files, generations, torch_archive
from shared.errors import FileFormatError

FAMILY, FORMAT, BEFORE = "hoser-checkpoint/", "hoser-checkpoint/3", "hoser-checkpoint/2"
"""Of checkpoints; the format before this one, which is read, lacks `distillation`."""

DAMAGED = (
    *(RuntimeError, struct.error, EOFError, OSError, MemoryError, RecursionError),
    *(ValueError, LookupError, OverflowError, TypeError, AttributeError, AssertionError),
)
"""What torch's reader of the index raises when it is not what `torch.save` writes."""

_AS_IT_IS = pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True, revalidate_instances="always")
"""Types must be those that are written; nothing is converted."""


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

    __pydantic_config__ = _AS_IT_IS


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

    __pydantic_config__ = _AS_IT_IS


_CONTENT = pydantic.TypeAdapter(Checkpoint)
"""Looks at the types; what it makes is not used."""


def save(path: Path, checkpoint: Checkpoint, keep: int = 1) -> None:
    """Writes a checkpoint; a crash leaves the old file or the new one.

    Args:
        path: NAME.pt.
        checkpoint: its content.
        keep: how many there are to be afterwards: the one before becomes NAME.1.pt, that before it NAME.2.pt.
    """
    values = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    values["progress"] = dataclasses.asdict(checkpoint.progress)
    with files.atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **values}, temporary)
        generations.rotate(path, keep)


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """`torch.save`, atomically."""
    with files.atomic_path(path) as temporary:
        torch.save(values, temporary)


def load_newest(path: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, of `path` and those before it; None if there is none.

    Raises:
        FileFormatError: there are some, and none can be read.
    """
    return generations.newest(path, load, lambda checkpoint: checkpoint.progress.step)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        FileFormatError: the file is missing, damaged, not a checkpoint, or holds code.
    """
    values = load_tensors(path)
    written = values.pop("format", None)
    if written not in (FORMAT, BEFORE):
        raise FileFormatError(f"{path} is not a checkpoint of this system ({FORMAT})")
    try:
        checkpoint = Checkpoint(**{**values, "progress": Progress(**values["progress"])})
        _CONTENT.validate_python(checkpoint)
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None
    except pydantic.ValidationError as error:
        issue = error.errors()[0]
        raise FileFormatError(f"{path} is damaged: {'.'.join(map(str, issue['loc']))}: {issue['msg']}") from None
    return checkpoint


def is_checkpoint(values: dict[str, Any]) -> bool:
    """Whether the content of a file is a checkpoint of ours rather than a bare `state_dict`."""
    return str(values.get("format")).startswith(FAMILY)


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads a file of tensors and plain values; nothing in it is executed.

    Raises:
        FileFormatError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise FileFormatError(f"no weights at {path}")
    torch_archive.check(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *DAMAGED) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise FileFormatError(f"{path} is damaged or not of this kind: {reason}") from None
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} holds a {type(values).__name__}, expected a dictionary of weights")
    _check_tensors(path, values)
    return values


def _check_tensors(path: Path, values: Any) -> None:
    """Refuses a tensor that claims a shape larger than its data, as an expanded one does: a copy would be as large."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FileFormatError(f"{path}: a tensor claims the shape {list(value.shape)}, larger than its data")
