"""An evaluation's values to TensorBoard and Weights & Biases, under stable names: `evaluate/<metric>`."""

from __future__ import annotations

from typing import Any

from student_trainer.evaluate import metrics
from student_trainer.evaluate.config import EvaluateConfig


def publish(settings: EvaluateConfig, document: dict[str, Any]) -> None:
    """Writes the values to the sinks that the settings ask for."""
    values = metrics.flat(document)
    if settings.log.tensorboard:
        from torch.utils.tensorboard import SummaryWriter  # heavy

        with SummaryWriter(str(settings.out / "tensorboard")) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value)
    if settings.log.wandb != "off":
        import wandb  # heavy

        with wandb.init(
            project=settings.log.wandb_project,
            name=document["name"],
            job_type="evaluate",
            tags=list(settings.log.wandb_tags),
            mode=settings.log.wandb,
            dir=str(settings.out),
            config=document["settings"],
        ) as run:
            run.log(values)
