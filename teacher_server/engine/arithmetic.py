"""What CUDA's libraries are told, once, so that a product's bits depend on its shape and its inputs alone.

Also the names of those libraries and of the driver, which choose among kernels: another version may give other bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
PARTS = (0, 1, 2)
"""Of a library's version: major, minor, patch."""


def fix() -> None:
    """Before the first product: one workspace, no reduction in half precision, no TF32.

    torch can also forbid sums that are split among blocks, but then refuses every product of its default library; where
    they make a small shape differ, `calibrate.py` sees it and leaves that shape out.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False


def versions() -> list[str]:
    """CUDA, cuBLAS and driver."""
    return [str(torch.version.cuda), _cublas(), _driver()]


def _cublas() -> str:
    """Version of the cuBLAS that this process has loaded."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    paths = sorted({line.split(maxsplit=5)[5] for line in lines if "/libcublas.so" in line})
    for path in paths:
        with contextlib.suppress(OSError, AttributeError):
            library, number = ctypes.CDLL(path), ctypes.c_int()
            found = []
            for part in PARTS:
                library.cublasGetProperty(part, ctypes.byref(number))
                found.append(str(number.value))
            return ".".join(found)
    return "unknown"


def _driver() -> str:
    """Release of the driver, as its module names it."""
    version = Path("/proc/driver/nvidia/version")
    try:
        first = version.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return " ".join(first.split())
