"""Where a run's metrics go: `metrics.jsonl`, and the sinks that the settings ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from shared import files
from student_trainer.runs.layout import RunFiles
from student_trainer.runs.prometheus import Prometheus
from student_trainer.runs.sinks import Sinks, WandbRun
from student_trainer.train.config import TrainConfig


class Logbook:
    """Writes each record to every sink that the settings ask for.

    A record is a flat dictionary of numbers with `step`; names are `group/metric`.
    """

    def __init__(self, settings: TrainConfig, step: int, revision: str = "", store: str = "") -> None:
        """Opens the sinks of a run that stands at `step`; later records of an earlier attempt are dropped.

        Args:
            revision: of the teacher's weights; empty for none.
            store: the fingerprint of the data.
        """
        path = RunFiles(settings.out).metrics
        _keep_until(path, step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        wandb = WandbRun(
            asked=settings.log.wandb,
            project=settings.log.wandb_project,
            name=settings.log.wandb_name or settings.out.name,
            config=settings.model_dump(mode="json"),
            tags=settings.log.wandb_tags,
            group=settings.log.wandb_group,
        )
        about = {"run": str(settings.out), "revision": revision, "store": store}
        serves = settings.log.prometheus != "off"
        self._sinks = Sinks(
            settings.out, settings.log.tensorboard, wandb, after=step,
            prometheus=(lambda: Prometheus(settings.log.prometheus, about, step)) if serves else None,
        )  # fmt: skip

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a record."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._sinks.write(step, metrics)

    def close(self) -> None:
        """Flushes and closes every sink."""
        self._file.close()
        self._sinks.close()


def _keep_until(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # a crash may have cut the last one
        files.write_text(path, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))
