"""Settings of `compare`."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.config import Section
from student_trainer.evaluate.config import BootstrapConfig, Paths


class CompareConfig(Section):
    """`compare`: evaluations of the same OD pairs, arm by arm: over seeds, and pair by pair."""

    evaluations: Paths
    """Directories that `evaluate` wrote, separated by commas. Runs that differ in their seeds only are one arm."""
    out: Path
    """Directory to write."""
    baseline: str = ""
    """Arm, or one of its models, that the others are compared with; empty: that without a teacher, or, where nothing
    is known of the training, the first."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Intervals of the differences."""
    significance: float = pydantic.Field(0.05, gt=0, lt=1)
    """Largest p-value, after Holm's correction, of a difference that is called real."""

    @pydantic.field_validator("evaluations")
    @classmethod
    def _at_least_two(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(paths) < 2:
            raise ValueError("give two or more, separated by commas: ONE,OTHER")
        return paths
