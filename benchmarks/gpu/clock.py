"""Time and memory of what a device does."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._autograd import DeviceType

MIB = 2**20
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
"""What the profiler calls them."""


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a device did in a call.

    Attributes:
        kernels: started.
        launches: of kernels and of graphs, by the host.
        copies: of memory, and settings of it.
        seconds: of kernels and copies, added up.
        longest: the kernels that took most: name, seconds, times.
    """

    kernels: int
    launches: int
    copies: int
    seconds: float
    longest: list[tuple[str, float, int]]


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device, times: int, rounds: int = 3) -> float:
    """Seconds of one of several calls, the device's work included: the median of the rounds, after a first call."""
    function()
    synchronise(device)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            function()
        synchronise(device)
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def trace(function: Callable[[], Any], device: torch.device, times: int = 1) -> Traced | None:
    """What the device does in a call, the mean of several; None on a CPU."""
    if device.type != "cuda":
        return None
    function()
    synchronise(device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(times):
            function()
        synchronise(device)
    kernels: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    launches = 0
    for event in profile.events() or []:
        launches += event.device_type == DeviceType.CPU and event.name.startswith(LAUNCHES)
        if event.device_type == DeviceType.CUDA:
            kernels[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    copies = sum(count for name, count in kernels.items() if name.startswith(("Memcpy", "Memset")))
    return Traced(
        kernels=round((kernels.total() - copies) / times),
        launches=round(launches / times),
        copies=round(copies / times),
        seconds=microseconds.total() / 1e6 / times,
        longest=[(name[:90], us / 1e6 / times, kernels[name] // times) for name, us in microseconds.most_common(8)],
    )


def syncs(function: Callable[[], Any], device: torch.device) -> Counter[str] | None:
    """Where a call waits for the device, and how often; None on a CPU."""
    if device.type != "cuda":
        return None
    function()
    synchronise(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return Counter(f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in lines)


def reset_peak(device: torch.device) -> None:
    """Forgets the most memory that was allocated on the device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float:
    """The most memory that this process had allocated on the device, MiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else 0.0


class Utilisation:
    """Percent of the time that a kernel ran, as the driver samples it.

    Attributes:
        percent: of each sample.
    """

    def __init__(self) -> None:
        self.percent: list[float] = []

    @classmethod
    @contextlib.contextmanager
    def watched(cls, device: torch.device) -> Iterator[Utilisation]:
        """Samples until the block ends; without `nvidia-smi` there are no samples."""
        found = cls()
        program = shutil.which("nvidia-smi")
        if device.type != "cuda" or program is None:
            yield found
            return
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100", "-i", "0"]
        with subprocess.Popen([program, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as smi:
            try:
                yield found
            finally:
                smi.terminate()
                text, _ = smi.communicate()
                found.percent = [float(line) for line in text.split() if line.replace(".", "").isdigit()]

    @property
    def share(self) -> float | None:
        """Median of the samples but the first and the last, 0 to 1; None without any."""
        inner = self.percent[1:-1] or self.percent
        return statistics.median(inner) / 100 if inner else None
