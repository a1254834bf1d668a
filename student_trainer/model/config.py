"""Settings of students: what all have, and HOSER's. They import nothing slow."""

from __future__ import annotations

from typing import Literal

import pydantic

from shared.config import Section

TemporalEncoding = Literal["freqs", "time_emb"]
"""Fourier features with learnt frequencies (current upstream) or cos(W t + b) (older upstream)."""


class StudentConfig(Section):
    """What the settings of every student have; a class of its own for each architecture (`students`)."""

    name: str
    """The architecture."""


class ModelConfig(StudentConfig):
    """HOSER's widths and depths; the defaults are those of the public HOSER."""

    name: Literal["hoser"] = "hoser"
    """The architecture of the student: hoser. Another one has settings of its own beside its name."""
    road_id_dim: int = pydantic.Field(64, ge=1)
    """Width of the road id embedding."""
    road_attr_dim: int = pydantic.Field(16, ge=1)
    """Width of each of the four attribute embeddings: length, type, longitude, latitude."""
    num_heads: int = pydantic.Field(2, ge=1)
    """Attention heads of the trip encoder; its width is twice the road width, road_id_dim + 4 * road_attr_dim."""
    num_layers: int = pydantic.Field(2, ge=1)
    """Blocks of the trip encoder."""
    num_graph_layers: int = pydantic.Field(2, ge=1)
    """Layers of the road GATv2 and of the zone GCN."""
    zone_embeddings: int = pydantic.Field(0, ge=0)
    """Rows of the zone embedding; 0 for as many as there are zones (upstream's settings fix 300)."""
    temporal: TemporalEncoding = "freqs"
    """Temporal encoder: freqs (current upstream) or time_emb (older upstream)."""
    mask_size: int = pydantic.Field(1024, ge=1)
    """Size of the causal masks in weights exported for upstream: the longest trip, in steps, that it accepts."""
    checkpoint_blocks: bool = False
    """Recompute the trip encoder's blocks in the backward pass instead of keeping their activations."""

    @property
    def road_dim(self) -> int:
        """d: width of road, zone and temporal embeddings."""
        return self.road_id_dim + 4 * self.road_attr_dim

    @property
    def state_dim(self) -> int:
        """2d: width of the trip encoder, and of a position's state."""
        return 2 * self.road_dim

    @pydantic.model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.road_dim % 2 or (2 * self.road_dim) % self.num_heads:
            raise ValueError(
                f"width {self.road_dim} = road_id_dim + 4 * road_attr_dim must be even and twice it divisible "
                f"by num_heads {self.num_heads}"
            )
        return self
