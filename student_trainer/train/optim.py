"""Optimiser, learning-rate schedule, and mixed precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from student_trainer.distill.config import DistillConfig
from student_trainer.model import device as devices
from student_trainer.train.config import OptimConfig, RuntimeConfig


class Learner(Protocol):
    """What has parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""


def build_optimizer(config: OptimConfig, *modules: Learner) -> torch.optim.AdamW:
    """AdamW over everything that learns, as upstream has it: no groups without decay."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
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


def distill_share(step: int, total: int, config: DistillConfig) -> float:
    """Share of the weight of the terms that fade at optimizer step `step` in 0..total-1: 1 at the first, then falling
    along half a cosine or a line to 0, where it stays from step `schedule_share * total` on."""
    if config.schedule == "constant":
        return 1.0
    progress = min(step / (config.schedule_share * total), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress


class Precision:
    """Autocast, loss scaling and TF32 as the settings and the device want them."""

    def __init__(self, config: RuntimeConfig, device: torch.device) -> None:
        amp: str = config.amp
        if amp == "auto":
            accelerated = "bfloat16" if devices.has_bfloat16(device) else "float16"
            amp = "off" if device.type == "cpu" else accelerated
        self.dtype = {"off": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[amp]
        self._device, self._tf32 = device, config.tf32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward passes."""
        return devices.autocast(self._device, self.dtype)

    def float32_products(self) -> AbstractContextManager[None]:
        """The context of forward and backward passes: what stays float32 may use TF32, if the settings let it."""
        return devices.float32_products(self._device, self._tf32)
