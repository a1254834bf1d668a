"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

import logging

import torch

from shared.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def find_device(name: str) -> torch.device:
    """The device of a setting; raises `ConfigError` if there is none such."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if available else "cpu")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda" and device.index >= available:
        raise ConfigError(f"device={name}, but torch sees {available} CUDA devices here; use device=cpu or auto")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Weights and arithmetic of inference on a device; auto: float32 on the CPU, otherwise float16."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if device.type == "cpu" and name != "float32":
        log.warning("dtype=%s on the CPU is many times slower than float32", name)
    return DTYPES[name]


def find_autocast(name: str, device: torch.device) -> torch.dtype | None:
    """Reduced precision of the forward pass in training; None: float32, which auto takes on the CPU."""
    if name == "float32" or (name == "auto" and device.type == "cpu"):
        return None
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        log.warning("dtype=%s on the CPU is many times slower than float32", name)
    return DTYPES[name]
