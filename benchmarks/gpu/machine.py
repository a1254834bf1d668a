"""Part `machine`: versions, and what the hardware can do: copies, matrix products, launches."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks import common
from benchmarks.gpu import clock
from benchmarks.gpu.record import Record
from benchmarks.gpu.size import Size
from benchmarks.gpu.task import Task

PACKAGES = ("torch", "triton", "numpy", "numba", "torch-geometric", "grpcio", "protobuf", "pydantic", "safetensors")
LAUNCHES = 2000


def run(task: Task, record: Record) -> None:
    """Measures."""
    with record.attempt("versions"):
        record.detail("machine", versions(task.device))
    with record.attempt("copies"):
        _copies(task.device, task.size, record)
    with record.attempt("launches"):
        tensor = torch.zeros(1, device=task.device)
        clock.seconds_of(lambda: tensor.add_(1), task.device, LAUNCHES // 20, 1)
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            tensor.add_(1)
        launched = time.perf_counter() - start
        clock.synchronise(task.device)
        record.add("launch", 1e6 * launched / LAUNCHES, "µs", note="the host's time of a one-element addition")
        record.add(
            "wait", 1e6 * clock.seconds_of(tensor.item, task.device, 200), "µs", note="a value read from the device"
        )
    dtype = task.dtype
    with record.attempt("matmul"):
        edge = task.size.matmul
        rate = matmul_rate(edge, edge, edge, task.device, dtype)
        record.add(f"matmul {edge} {str(dtype).removeprefix('torch.')}", rate / 1e12, "TFLOP/s")
        for rows in (16_384, 4_096, 1_024, 64) if task.is_full else (64,):
            for name, k, n in _shapes(task.size):
                found = matmul_rate(rows, k, n, task.device, dtype)
                record.add(f"{name}, {rows} rows", found / 1e12, "TFLOP/s", baseline=("the large product", rate / 1e12))


def versions(device: torch.device) -> dict[str, Any]:
    """Hardware and software."""
    found: dict[str, Any] = common.machine() | {"python": sys.version.split()[0], "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["device_memory_mib"] = properties.total_memory // clock.MIB
        found["multiprocessors"] = properties.multi_processor_count
        found["driver"] = _nvidia(
            "driver_version,clocks.max.sm,power.limit,pcie.link.gen.current,pcie.link.width.current"
        )
        if torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return found


def matmul_rate(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of [m, k] @ [k, n], some milliseconds long."""
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(n, k, device=device, dtype=dtype).T
    operations = 2.0 * m * k * n
    times = max(3, min(200, int(2e12 / operations))) if device.type == "cuda" else 3
    return operations / clock.seconds_of(lambda: a @ b, device, times)


def _shapes(size: Size) -> list[tuple[str, int, int]]:
    width = size.n_embd
    return [
        ("attention in", width, 3 * width),
        ("attention out", width, width),
        ("mlp in", width, 4 * width),
        ("mlp out", 4 * width, width),
    ]


def _copies(device: torch.device, size: Size, record: Record) -> None:
    count = size.copy_mib * clock.MIB
    here = torch.zeros(count, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    seconds = clock.seconds_of(lambda: there.copy_(here), device, 5)
    record.add("device copy", 2 * count / seconds / 1e9, "GB/s", note="read and written")
    quarter = count // 4
    pageable = torch.zeros(quarter, dtype=torch.uint8)
    pinned = pageable.pin_memory() if device.type == "cuda" else pageable
    part = here[:quarter]
    for name, host in (("pinned", pinned), ("pageable", pageable)):
        to_device = functools.partial(part.copy_, host, non_blocking=True)
        to_host = functools.partial(host.copy_, part, non_blocking=True)
        for way, copy in {"host to device": to_device, "device to host": to_host}.items():
            record.add(f"{way}, {name}", quarter / clock.seconds_of(copy, device, 5) / 1e9, "GB/s")


def _nvidia(query: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={query}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or None
