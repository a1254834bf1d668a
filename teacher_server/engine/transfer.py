"""What a batch needs on an accelerator, in one copy there; what was computed, in one copy back.

    arrays --pack--> page-locked memory --copy stream--> device memory --views--> tiles, candidates

Memory is kept: while a batch is computed from one, the next batch is packed into another.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.arrays import Float32
from teacher_server.engine.streams import Memory, Streams

ALIGNED = 32
"""Parts start at multiples of so many numbers: 128 bytes, as fast loads and kernels chosen by alignment need it."""
LEAST = 1 << 16
"""Numbers of the smallest memory."""
KEPT = 3
"""Memories kept: one that is computed from, one that is packed, and one that a larger batch made useless."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Arrays that lie back to back on the device.

    Attributes:
        arrays: of numbers that int32 holds, in their order.
        size: numbers that the part has; zeros follow the arrays.
    """

    arrays: Sequence[npt.NDArray[np.integer]]
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Parcel:
    """A batch's arrays on their way.

    Attributes:
        memory: that holds them.
        parts: int32, on the device, one for each `Part`; they may be read once `upload` has arrived.
        upload: of `Streams.upload`.
    """

    memory: Memory
    parts: list[Tensor]
    upload: object


class Sender:
    """Packs and sends; any thread."""

    def __init__(self, streams: Streams) -> None:
        """Has no memory yet."""
        self._streams = streams
        self._lock = threading.Lock()
        self._free: list[Memory] = []

    @torch.inference_mode()
    def send(self, parts: Sequence[Part]) -> Parcel:
        """One copy of all parts. The memory is the parcel's until `take_back`."""
        starts = np.cumsum([0, *(-(-part.size // ALIGNED) * ALIGNED for part in parts)]).tolist()
        memory = self._memory(starts[-1])
        numbers = memory.numbers
        for part, start in zip(parts, starts, strict=False):
            at = start
            for array in part.arrays:
                numbers[at : at + array.size] = array.reshape(-1)
                at += array.size
            numbers[at : start + part.size] = 0
        upload = self._streams.upload(memory.here[: starts[-1]], memory.there[: starts[-1]])
        views = [memory.there[start : start + part.size] for part, start in zip(parts, starts, strict=False)]
        return Parcel(memory, views, upload)

    def take_back(self, parcel: Parcel) -> None:
        """A parcel that has arrived, and of which all has been computed, is needed no more."""
        with self._lock:
            self._free.append(parcel.memory)
            self._free = sorted(self._free, key=lambda memory: -len(memory.numbers))[:KEPT]

    def _memory(self, count: int) -> Memory:
        with self._lock:
            fitting = [memory for memory in self._free if len(memory.numbers) >= count]
            if fitting:
                self._free.remove(fitting[-1])
                return fitting[-1]
        return self._streams.memory(max(LEAST, 1 << (count - 1).bit_length()), torch.int32)


class Receiver:
    """Brings results back; one thread at a time."""

    def __init__(self, streams: Streams) -> None:
        """Has little memory yet."""
        self._streams = streams
        self._memory = streams.memory(LEAST, torch.float32)

    def space(self, count: int) -> Tensor:
        """Where to compute results, on the device: float32 [count]."""
        if count > len(self._memory.numbers):
            self._memory = self._streams.memory(1 << (count - 1).bit_length(), torch.float32)
        return self._memory.there[:count]

    def receive(self, count: int) -> Float32:
        """Waits for what was computed in `space`, in one copy: float32 [count], the caller's own."""
        self._streams.download(self._memory.there[:count], self._memory.here[:count])
        found: Float32 = self._memory.numbers[:count].copy()
        return found
