"""Formats of checkpoints: everything that a run needs to go on, written atomically, never executed when read.

A checkpoint is a `torch.save` archive of tensors and plain values, read with `weights_only=True` after the checksum
of every record.
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
import typing
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic
import torch
from torch import Tensor

from shared import files, torch_archive
from shared.errors import FileFormatError
from shared.training import generations

AS_IT_IS = pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True, revalidate_instances="always")
"""Of a checkpoint's classes: types must be those that are written; nothing is converted."""
DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, struct.error, EOFError, OSError, MemoryError, RecursionError),
    *(ValueError, LookupError, OverflowError, TypeError, AttributeError, AssertionError),
)
"""What torch's reader of the index raises when it is not what `torch.save` writes."""

C = TypeVar("C")


class Format(Generic[C]):
    """How checkpoints of one kind are written and read.

    Attributes:
        name: what stands in the file.
    """

    def __init__(self, content: type[C], name: str, *readable: str) -> None:
        """
        Args:
            content: a dataclass with `AS_IT_IS`; its `progress` is one, too, and has `step`.
            name: of the format that is written.
            readable: older ones, whose fields are a part of these.
        """
        self.name = name
        self._names, self._content = (name, *readable), content
        self._progress = typing.get_type_hints(content)["progress"]
        self._types = pydantic.TypeAdapter(content)  # looks at the types; what it makes is not used

    def save(self, path: Path, checkpoint: C, keep: int = 1) -> None:
        """Writes a checkpoint; a crash leaves the old file or the new one.

        Args:
            path: NAME.pt.
            checkpoint: its content.
            keep: how many there are to be afterwards: the one before becomes NAME.1.pt, that before it NAME.2.pt.
        """
        fields = dataclasses.fields(typing.cast(Any, checkpoint))
        values = {field.name: getattr(checkpoint, field.name) for field in fields}
        values["progress"] = dataclasses.asdict(values["progress"])
        with files.atomic_path(path) as temporary:
            torch.save({"format": self.name, **values}, temporary)
            generations.rotate(path, keep)

    def load_newest(self, path: Path) -> C | None:
        """The newest checkpoint that can be read, of `path` and those before it; None if there is none.

        Raises:
            FileFormatError: there are some, and none can be read.
        """
        return generations.newest(path, self.load, lambda checkpoint: typing.cast(Any, checkpoint).progress.step)

    def load(self, path: Path) -> C:
        """Reads a checkpoint.

        Raises:
            FileFormatError: the file is missing, damaged, not a checkpoint of this format, or holds code.
        """
        values = load_tensors(path)
        if values.pop("format", None) not in self._names:
            raise FileFormatError(f"{path} is not a checkpoint of this system ({self.name})")
        try:
            checkpoint = self._content(**{**values, "progress": self._progress(**values["progress"])})
            self._types.validate_python(checkpoint)
        except (TypeError, KeyError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None
        except pydantic.ValidationError as error:
            issue = error.errors()[0]
            raise FileFormatError(f"{path} is damaged: {'.'.join(map(str, issue['loc']))}: {issue['msg']}") from None
        return checkpoint


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
    except DAMAGED as error:
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
