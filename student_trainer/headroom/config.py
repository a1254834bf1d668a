"""Settings of `headroom`."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.address import TeachersText
from shared.config import Section, Seed
from shared.store import Cache, SplitName
from student_trainer.distill.config import ClientConfig
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.runs.layout import WeightsPath


class HeadroomConfig(Section):
    """A student and the teacher that might teach it."""

    data: Path
    """Store that `prepare` wrote."""
    teacher: TeachersText
    """As for train."""
    weights: WeightsPath
    """A run's directory or checkpoint, or a public `state_dict`."""
    split: SplitName = "val"
    """train, val or test: trips that the student has not been trained on."""
    trips: int = pydantic.Field(2_000, ge=0)
    """Measure on a sample of at most so many of its trips; 0: all."""
    seed: Seed = 0
    """Of this sample, and of the halves on which coefficients are fitted and judged."""
    window: int | None = pydantic.Field(None, ge=0)
    """Cells of history that the teacher sees after SOT, as distill.window; none: as the run, or 4."""
    train_trips: int | None = pydantic.Field(None, ge=0)
    """How many labelled trips the student was trained on, which the sentence names; 0: all of the training split;
    none: as the run, or all."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Intervals."""
    cache: Cache = "auto"
    """As in training: where the splits are held."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    client: ClientConfig = ClientConfig()
    """Connection to the teacher. on_failure: nothing can be skipped here."""

    @pydantic.field_validator("teacher")
    @classmethod
    def _is_there(cls, teacher: str) -> str:
        if teacher == "none":
            raise ValueError("it is the teacher's headroom; give its address")
        return teacher

    @pydantic.model_validator(mode="after")
    def _check(self) -> HeadroomConfig:
        if self.client.on_failure == "skip":
            raise ValueError("client.on_failure=skip: no position can be left out; use wait or abort")
        return self
