"""Directories as `train` leaves them, with weights that nobody trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from shared import config
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train.config import TrainConfig

MODEL = {"road_id_dim": 8, "road_attr_dim": 2, "mask_size": 64}


def write_run(path: Path, store: Store, seed: int, teacher: str = "none", steps: int = 0, **settings: Any) -> Path:
    """A run of these settings, finished if its steps are given; its checkpoint, best.pt, is returned."""
    given = {"data": str(store.path), "out": str(path), "teacher": teacher, "seed": seed, "model": MODEL} | settings
    resolved = TrainConfig.model_validate(given)
    torch.manual_seed(seed + 100 * resolved.distils)
    model = HOSER(ModelConfig.model_validate(MODEL), RoadNetwork.load(store))
    mu, sigma = store.time_scale
    values = checkpoints.Checkpoint(
        model=upstream.export(model), optimizer={}, scaler={}, progress=checkpoints.Progress(),
        config=resolved.model_dump(mode="json"), store=store.fingerprint, mu=mu, sigma=sigma,
        teacher_revision="revision" if resolved.distils else "", sums={}, random_state={"cpu": torch.zeros(1)},
        torch="",
    )  # fmt: skip
    (path / "checkpoints").mkdir(parents=True)
    best = path / "checkpoints" / "best.pt"
    checkpoints.save(best, values)
    config.save(resolved, "train", path / "config.yaml")
    lines = [{"step": s, "train/loss_next_road": 1 / (s + seed)} for s in (1, 2, 3)]
    lines += [{"step": s, "val/accuracy": 0.5 + s / 10 + seed / 100 + resolved.distils / 20} for s in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if steps:
        (path / "summary.json").write_text(json.dumps({"steps": steps, "headroom": None}))
    return best
