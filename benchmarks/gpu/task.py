"""What a part is asked to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from benchmarks.gpu.size import FULL, TOY, Size


@dataclasses.dataclass(frozen=True)
class Task:
    """What a part is asked to do.

    Attributes:
        store: trips and roads.
        work: directory of teachers, runs and logs; its contents are of no use later.
        device: with an index where it is an accelerator.
    """

    store: Path
    work: Path
    device: torch.device

    @property
    def is_full(self) -> bool:
        """Whether all is measured; on a CPU it is only shown that it runs."""
        return self.device.type != "cpu"

    @property
    def size(self) -> Size:
        """How much is measured."""
        return FULL if self.is_full else TOY

    @property
    def dtype(self) -> torch.dtype:
        """Of the teacher's arithmetic, as `engine.dtype=auto` has it."""
        return torch.float16 if self.is_full else torch.float32
