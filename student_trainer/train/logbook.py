"""Where metrics go: `metrics.jsonl`, TensorBoard, Weights & Biases, the console."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from shared import files
from student_trainer.runs.layout import RunFiles
from student_trainer.train.config import TrainConfig

log = logging.getLogger(__name__)


class Logbook:
    """Writes each record to every sink that the settings ask for.

    A record is a flat dictionary of numbers with `step`; names are `group/metric`.
    """

    def __init__(self, settings: TrainConfig, step: int) -> None:
        """Opens the sinks of a run that stands at `step`; later records of an earlier attempt are dropped."""
        path = RunFiles(settings.out).metrics
        _keep_until(path, step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._tensorboard = (
            SummaryWriter(str(settings.out / "tensorboard"), purge_step=step + 1) if settings.log.tensorboard else None
        )
        self._wandb = _start_wandb(settings) if settings.log.wandb != "off" else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a record."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        """Flushes and closes every sink."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _keep_until(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # a crash may have cut the last one
        files.write_text(path, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))


def _start_wandb(settings: TrainConfig) -> Any:
    import wandb  # heavy, and off by default

    return wandb.init(
        project=settings.log.wandb_project,
        name=settings.log.wandb_name or settings.out.name,
        group=settings.log.wandb_group,
        tags=list(settings.log.wandb_tags),
        mode=settings.log.wandb if settings.log.wandb != "off" else "disabled",
        dir=str(settings.out),
        config=settings.model_dump(mode="json"),
    )
