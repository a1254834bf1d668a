"""Optimiser, learning-rate schedule, and mixed precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import nn

from shared.errors import ConfigError
from student_trainer.train.config import OptimConfig, RuntimeConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over everything that learns, as upstream has it: no groups without decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of optimizer step `step` in 0..total-1.

    Rises linearly over the first `warmup * total` steps to the peak, which it reaches at
    the last of them, then falls as a cosine that arrives at `final_lr * peak` at the last step.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup + 1) / max(total - warmup, 1)
    share = config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * share


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runtime.device: {name!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"runtime.device: {name} is not here ({torch.cuda.device_count()} CUDA devices)")
    return device


class Precision:
    """Autocast and loss scaling as the settings and the device want them."""

    def __init__(self, config: RuntimeConfig, device: torch.device) -> None:
        amp = config.amp
        if amp == "auto":
            amp = "off" if device.type == "cpu" else "float16"
        self.dtype = {"off": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[amp]
        self._device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = config.tf32
            torch.backends.cudnn.allow_tf32 = config.tf32

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward passes."""
        return torch.autocast(self._device.type, dtype=self.dtype, enabled=self.dtype is not None)
