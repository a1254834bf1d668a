"""What an accelerator is asked for beside arithmetic: page-locked memory, copies in the background, recorded graphs.

    any thread: host memory --upload (copy stream)--> device memory --arrived--> model thread: compute stream
    model thread: device memory --download, the only wait--> host memory

`Direct` does the same at once, for devices that have no streams: so all that uses them is tested on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

Replay = Callable[[], None]
"""Does again what was recorded, with whatever its inputs hold now."""


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """For the same numbers here and there.

    Attributes:
        here: page-locked memory of the host: [n].
        there: memory of the device: [n].
        numbers: `here` as an array.
    """

    here: Tensor
    there: Tensor
    numbers: npt.NDArray


class Streams(Protocol):
    """Of one device."""

    def computing(self) -> AbstractContextManager[object]:
        """Within the block this thread's work is on the compute stream."""

    def memory(self, count: int, dtype: torch.dtype) -> Memory:
        """Of the host and of the device; any thread."""

    def upload(self, here: Tensor, there: Tensor) -> Any:
        """Starts a copy from page-locked memory; any thread. Returns what `arrived` takes."""

    def arrived(self, upload: Any) -> None:
        """What is computed from now on has the copy; the host does not wait."""

    def download(self, there: Tensor, here: Tensor) -> None:
        """Copies to page-locked memory and waits for it, and so for all that was computed before."""

    def record(self, function: Replay) -> Replay:
        """Records what a function that has run before does on the device.

        Raises:
            RuntimeError: it does something that cannot be recorded.
        """

    def milliseconds(self, function: Callable[[], object], times: int) -> float:
        """Of a call, where the device waits for the host, too: the mean of several after a first one."""


class CudaStreams:
    """Of a CUDA device: one stream to compute on, so that nothing is computed side by side, and one to copy on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._compute: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copy: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute.wait_stream(torch.cuda.default_stream(device))  # which has brought the weights
        self._pool: Any = None
        self._lock = threading.Lock()  # nothing else is asked for while a graph is recorded

    def computing(self) -> AbstractContextManager[object]:
        """See `Streams`."""
        return torch.cuda.stream(self._compute)

    def memory(self, count: int, dtype: torch.dtype) -> Memory:
        """See `Streams`."""
        with self._lock, torch.cuda.stream(self._copy):  # freed, it is written again by this stream only
            here = torch.empty(count, dtype=dtype).pin_memory()
            return Memory(here, torch.empty(count, dtype=dtype, device=self._device), here.numpy())

    def upload(self, here: Tensor, there: Tensor) -> Any:
        """See `Streams`."""
        with self._lock, torch.cuda.stream(self._copy):
            there.copy_(here, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._copy)
        return event

    def arrived(self, upload: Any) -> None:
        """See `Streams`."""
        self._compute.wait_event(upload)

    def download(self, there: Tensor, here: Tensor) -> None:
        """See `Streams`."""
        with self.computing():
            here.copy_(there, non_blocking=True)
            self._compute.synchronize()

    def record(self, function: Replay) -> Replay:
        """See `Streams`. All graphs share their memory: they run one after another, and nothing in it lasts."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            self._lock,
            torch.cuda.graph(graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"),
        ):
            function()
        return graph.replay

    def milliseconds(self, function: Callable[[], object], times: int) -> float:
        """See `Streams`."""
        with self.computing():
            function()
            first: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            last: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            first.record(self._compute)
            for _ in range(times):
                function()
            last.record(self._compute)
            last.synchronize()
        return float(first.elapsed_time(last)) / times


class Direct:
    """Of a device that has none: everything is done at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def computing(self) -> AbstractContextManager[object]:
        """See `Streams`."""
        return contextlib.nullcontext()

    def memory(self, count: int, dtype: torch.dtype) -> Memory:
        """See `Streams`."""
        here = torch.empty(count, dtype=dtype)
        return Memory(here, torch.empty(count, dtype=dtype, device=self._device), here.numpy())

    def upload(self, here: Tensor, there: Tensor) -> Any:
        """See `Streams`."""
        return there.copy_(here)

    def arrived(self, upload: Any) -> None:
        """See `Streams`."""

    def download(self, there: Tensor, here: Tensor) -> None:
        """See `Streams`."""
        here.copy_(there)

    def record(self, function: Replay) -> Replay:
        """See `Streams`."""
        return function

    def milliseconds(self, function: Callable[[], object], times: int) -> float:
        """See `Streams`."""
        for _ in range(times):
            function()
        return 0.0
