"""Settings of `predict`."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.config import Section
from shared.store import Cache, SplitName


class PredictConfig(Section):
    """A prediction over a split."""

    data: Path
    """Store that `prepare` wrote."""
    weights: Path
    """A run's checkpoint, or a `state_dict` of public HOSER."""
    split: SplitName = "val"
    """train, val or test."""
    out: Path
    """The .npz file to write."""
    candidate_top_k: int = pydantic.Field(64, ge=0)
    """As in training: keep at most this many candidates per position; 0 keeps all."""
    max_steps: int = pydantic.Field(0, ge=0)
    """As in training: keep the last so many steps of longer trips; 0 keeps all."""
    cache: Cache = "auto"
    """As in training: where the split is held."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Trips per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
