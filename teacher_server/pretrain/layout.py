"""The files of a run of `pretrain`, named once, and whether a new run may be written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from shared import claims, files
from shared.errors import ConfigError
from teacher_server.lmtad.config import OVERWRITE
from teacher_server.pretrain.config import PretrainConfig


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what.

    Attributes:
        out: the teacher file. What the run needs, and tells, stands beside it in a directory.
    """

    out: Path

    @property
    def folder(self) -> Path:
        """OUT.run; where OUT is a link, beside what it leads to."""
        real = files.destination(self.out)
        return real.with_name(f"{real.name}.run")

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.folder / "config.yaml"

    @property
    def last(self) -> Path:
        """The newest checkpoint; last.1.pt is the one before it. A finished run has none any more."""
        return self.folder / "checkpoints" / "last.pt"

    @property
    def metrics(self) -> Path:
        """One JSON record a line."""
        return self.folder / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Settings and result of a finished run."""
        return self.folder / "summary.json"

    def remove_checkpoints(self) -> None:
        """When the teacher file is there they are of no use, and four times as large."""
        shutil.rmtree(self.last.parent, ignore_errors=True)

    def remove_earlier(self) -> None:
        """Makes place for a new run, whose settings are there already; what is not of a run stays."""
        self.remove_checkpoints()
        for folder in ("tensorboard", "wandb"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for path in (self.metrics, self.summary, self.folder / "wandb_run.json"):
            files.remove(path)


def check_unused(settings: PretrainConfig) -> None:
    """Refuses to begin where a teacher file or a run is, unless the settings say what to do about it.

    Raises:
        ConfigError: one is there, and is neither resumed nor to be replaced.
    """
    if settings.resume:
        return
    claims.check_file(settings.out, settings.overwrite, OVERWRITE)
    folder = RunFiles(settings.out).folder
    if folder.exists() and not settings.overwrite and not files.is_empty(folder):
        raise ConfigError(f"{folder} holds a run; go on with --resume, choose another --out or {OVERWRITE}")
