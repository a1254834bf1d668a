"""An evaluation's values to TensorBoard and Weights & Biases, under stable names: `evaluate/<metric>`."""

from __future__ import annotations

from typing import Any

from shared.sinks import Sinks, WandbRun
from student_trainer.evaluate import metrics
from student_trainer.evaluate.config import EvaluateConfig


def publish(settings: EvaluateConfig, document: dict[str, Any]) -> None:
    """Writes the values to the sinks that the settings ask for."""
    wandb = WandbRun(
        asked=settings.log.wandb,
        project=settings.log.wandb_project,
        name=document["name"],
        config=document["settings"],
        tags=settings.log.wandb_tags,
        job_type="evaluate",
    )
    sinks = Sinks(settings.out, settings.log.tensorboard, wandb)
    sinks.write(None, metrics.flat(document))
    sinks.close()
