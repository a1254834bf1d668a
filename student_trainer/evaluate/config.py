"""Settings of `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from shared.config import Section, Seed, split_commas
from shared.sinks import Wandb
from shared.store import Cache
from student_trainer.runs.layout import WeightsPath

Paths = Annotated[tuple[Path, ...], pydantic.BeforeValidator(split_commas)]


class BootstrapConfig(Section):
    """Resampling of trips, for intervals."""

    draws: int = pydantic.Field(2000, ge=100)
    """How often the trips are drawn again, with replacement."""
    confidence: float = pydantic.Field(0.95, gt=0.5, lt=1)
    """Share of the draws that an interval covers."""
    seed: Seed = 0
    """Seed of the draws."""


class SinkConfig(Section):
    """Where the values go beside OUT."""

    tensorboard: bool = False
    """Write event files to OUT/tensorboard."""
    wandb: Wandb = "off"
    """Weights & Biases; offline needs no network. WANDB_MODE and WANDB_DISABLED can only take away from it."""
    wandb_project: str = "lmtad-hoser-distill"
    """Its project."""
    wandb_tags: tuple[str, ...] = ()
    """Its tags."""


class EvaluateConfig(Section):
    """`evaluate`: measures generated or sampled trips against real ones."""

    data: Path
    """Store that `prepare` wrote."""
    trips: Path
    """Directory that `generate` wrote, or `sample`: its trips are compared with the test split's as a whole."""
    out: Path
    """Directory to write."""
    weights: WeightsPath | None = None
    """A run's directory or checkpoint, or a public `state_dict`: its next-road predictions are measured, too."""
    name: str = ""
    """What the report calls it; empty: as the generated trips are called."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """Intervals."""
    bins: int = pydantic.Field(15, ge=2, le=100)
    """Bins of equal width of the confidence, for the calibration error and the reliability curve."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """Of the next-road predictions, as in training: at most so many candidates; 0 keeps all."""
    max_steps: int = pydantic.Field(0, ge=0)
    """Of the next-road predictions, as in training: the last so many steps of longer trips; 0 keeps all."""
    cache: Cache = "auto"
    """Where the split is held: ram, mmap, or auto."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Trips per forward pass of the next-road predictions."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for the next-road predictions."""
    threads: int = pydantic.Field(0, ge=0)
    """Of an operation on the CPU, for the next-road predictions; 0 leaves it to torch."""
    predictions: Path | None = None
    """Directory where next-road predictions are kept, to be found by the same weights, store and cuts; none:
    OUT/predictions."""
    log: SinkConfig = SinkConfig()
    """Other places for the values."""
