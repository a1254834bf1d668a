"""Settings of a prediction."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.config import Section
from shared.store import Cache, SplitName


class CutConfig(Section):
    """How a split is cut into batches: as in training, so that the same positions and candidates are seen."""

    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""
    max_steps: int = pydantic.Field(0, ge=0)
    """As in training: keep the last so many steps of longer trips; 0 keeps all."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Trips per forward pass."""


class PredictConfig(CutConfig):
    """A prediction over a split."""

    data: Path
    """Store that `prepare` wrote."""
    weights: Path
    """A run's checkpoint, or a `state_dict` of public HOSER."""
    split: SplitName = "val"
    """train, val or test."""
    out: Path
    """The .npz file to write."""
    cache: Cache = "auto"
    """As in training: where the split is held."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = pydantic.Field(0, ge=0)
    """Of an operation on the CPU; 0 leaves it to torch."""
