"""Settings of `report` and `bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from shared.config import Section, Seed, split_commas
from student_trainer.evaluate.config import Paths
from student_trainer.runs.layout import WeightsPath


class ReportConfig(Section):
    """`report`: one HTML file that opens offline, figures, and trips as GeoJSON."""

    data: Path
    """Store that the trips were generated on."""
    evaluations: Paths
    """Directories that `evaluate` wrote, separated by commas; they name the generated trips."""
    comparison: Path | None = None
    """Directory that `compare` wrote: verdicts and significance."""
    runs: Paths = ()
    """Directories that `train` wrote, separated by commas: training curves."""
    study: Path | None = None
    """optuna_results/NAME, which `tune` wrote: its findings."""
    out: Path
    """Directory to write."""
    title: str = "Generated trips"
    """Headline."""
    map_pairs: int = pydantic.Field(200, ge=1)
    """OD pairs on the map: a quarter each of those where a model did not arrive and of the worst, the rest drawn."""
    seed: Seed = 0
    """Seed of that draw."""

    @pydantic.field_validator("evaluations")
    @classmethod
    def _at_least_one(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        if not paths:
            raise ValueError("give at least one")
        return paths


class BundleConfig(Section):
    """`bundle`: a report and what it is about in one archive."""

    report: Path
    """Directory that `report` wrote."""
    weights: Annotated[tuple[WeightsPath, ...], pydantic.BeforeValidator(split_commas)] = ()
    """Weights to add, separated by commas: runs' directories, or files."""
    runs: Paths = ()
    """Directories that `train` wrote, separated by commas: their settings and metrics are added."""
    out: Path
    """The .zip file to write."""
