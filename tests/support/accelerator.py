"""Small runs for tests on an accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shared.store import Store
from student_trainer.distill.teacher import Teacher
from student_trainer.train.config import TrainConfig
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3},
    "batch": {"bucket_batches": 2},
    "log": {"tensorboard": False, "every": 3, "progress": False},
}


def settings_of(store: Store, out: Path, device: torch.device | str, **changed: Any) -> TrainConfig:
    """Of a small run on a device without a teacher; sections are added to those of `SMALL`."""
    sections = {name: SMALL.get(name, {}) | value for name, value in changed.items() if isinstance(value, dict)}
    sections["runtime"] = {"tf32": False} | sections.get("runtime", {}) | {"device": str(device)}
    plain = {name: value for name, value in changed.items() if not isinstance(value, dict)}
    return TrainConfig.model_validate({"data": store.path, "out": out, "seed": 3, **SMALL, **plain, **sections})


def session_of(settings: TrainConfig, store: Store, teacher: Teacher | None = None) -> Session:
    """A session, resumed if the settings say so."""
    runtime = Runtime.of(settings.runtime, torch.device(settings.runtime.device))
    return Session(settings, store, runtime, teacher, find_checkpoint(settings, store))
