"""The files of a run, named once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import pydantic

from shared import claims, files
from shared.errors import ConfigError, FileFormatError

BEST = Path("checkpoints", "best.pt")
"""The best weights, below a run's directory: what makes a directory a run with a model."""
EVALUATION, COMPARISON, REPORT = "metrics.json", "comparison.json", "report.html"
"""What `evaluate`, `compare` and `report` write into their OUT."""
BOOKS = ("config.yaml", "summary.json", "metrics.jsonl", "profile.json")
"""What tells of a run without its weights."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what.

    Attributes:
        folder: `--out` of `train`.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.folder / "config.yaml"

    def checkpoint(self, name: str) -> Path:
        """The newest checkpoint of a name: `last` or `best`."""
        return self.folder / BEST.with_stem(name)

    @property
    def last(self) -> Path:
        """The newest checkpoint, where to go on from; last.1.pt is the one before it."""
        return self.checkpoint("last")

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation accuracy."""
        return self.folder / BEST

    @property
    def metrics(self) -> Path:
        """One JSON record a line: training metrics, and validation after each epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Result of a finished run."""
        return self.folder / "summary.json"


def weights_in(path: Path) -> Path:
    """The file of weights that a path stands for: itself, or the best checkpoint of a run's directory.

    Raises:
        FileFormatError: the directory is no run with a checkpoint.
    """
    if not path.is_dir():
        return path
    best = RunFiles(path).best
    if not best.is_file():
        raise FileFormatError(f"{path} is no run with weights: it has no {BEST}")
    return best


WeightsPath = Annotated[Path, pydantic.AfterValidator(weights_in)]
"""A setting that takes weights: a file, or a run's directory for the best of the run."""


def is_run(folder: Path) -> bool:
    """Whether a directory holds what `train` has written."""
    return claims.written_by(folder) == "train" or RunFiles(folder).last.exists()


def check_unused(out: Path) -> None:
    """Raises `ConfigError` if a new run cannot be written to a directory."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory; {claims.CHOOSE}")
    if out.exists() and not files.is_empty(out):
        if is_run(out):
            raise ConfigError(f"{out} holds a run; go on with --resume, or choose another --out")
        raise ConfigError(f"{out} is not empty and holds no run; choose another --out")
