"""Where a run's metrics go: `metrics.jsonl`, and the sinks that the settings ask for."""

from __future__ import annotations

from shared.sinks import WandbRun
from shared.training import logbook
from student_trainer.runs.layout import RunFiles
from student_trainer.runs.prometheus import Prometheus
from student_trainer.train.config import TrainConfig


class Logbook(logbook.Logbook):
    """The logbook of a training run."""

    def __init__(self, settings: TrainConfig, step: int, revision: str = "", store: str = "") -> None:
        """Opens the sinks of a run that stands at `step`; later records of an earlier attempt are dropped.

        Args:
            revision: of the teacher's weights; empty for none.
            store: the fingerprint of the data.
        """
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
        super().__init__(
            RunFiles(settings.out).metrics, step, settings.log.tensorboard, wandb,
            prometheus=(lambda: Prometheus(settings.log.prometheus, about, step)) if serves else None,
        )  # fmt: skip


def brief(metrics: dict[str, float]) -> dict[str, str]:
    """What a progress bar shows of a record."""
    shown = {"loss": "train/loss", "acc": "train/accuracy", "kl": "train/loss_kl", "wait ms": "perf/teacher_wait_ms"}
    return {label: f"{metrics[name]:.3f}" for label, name in shown.items() if name in metrics}
