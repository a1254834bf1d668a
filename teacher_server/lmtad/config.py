"""Settings of `export` and `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from shared.config import Section

OVERWRITE = "add overwrite=true"
"""What a user may do about a teacher file that is there."""


def _split_numbers(value: Any) -> Any:
    """LAT,LNG as a command line gives it."""
    return value.split(",") if isinstance(value, str) and "," in value else value


class ExportConfig(Section):
    """`export`: an upstream LM-TAD checkpoint becomes a teacher file."""

    checkpoint: Path
    """The upstream file: a training checkpoint, a weights-only export or a bare state_dict."""
    out: Path
    """The teacher file to write."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    n_head: int | None = pydantic.Field(None, gt=0)
    """Attention heads a block; needed only if the checkpoint has no model_config."""
    grid_rows: int | None = pydantic.Field(None, gt=0)
    """Rows of the grid, south to north; needed only if the checkpoint has no dataset_config."""
    grid_cols: int | None = pydantic.Field(None, gt=0)
    """Columns of the grid, west to east; needed only if the checkpoint has no dataset_config."""
    cell_size: Annotated[float | tuple[float, float] | None, pydantic.BeforeValidator(_split_numbers)] = None
    """Size of a cell, degrees: one number, or [latitude, longitude]."""
    bounds: tuple[float, float, float, float] | None = None
    """South, west, north, east bounds of the grid, degrees."""
    centroid: Literal["vertex_mean", "line"] = "vertex_mean"
    """Which point of a road the teacher's tokens were made from: the plain mean of its vertices (what public
    converters use) or the length-weighted centroid of its line."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ExportConfig:
        if (self.grid_rows is None) != (self.grid_cols is None):
            raise ValueError("grid_rows and grid_cols go together: give both or neither")
        if (self.cell_size is None) != (self.bounds is None):
            raise ValueError("cell_size and bounds go together: give both or neither")
        sizes = self.cell_size if isinstance(self.cell_size, tuple) else (self.cell_size,)
        if any(size is not None and size <= 0 for size in sizes):
            raise ValueError("cell_size must be positive")
        return self

    @property
    def cell_sizes(self) -> tuple[float, float] | None:
        """Height and width of a cell, degrees."""
        if self.cell_size is None or isinstance(self.cell_size, tuple):
            return self.cell_size
        return self.cell_size, self.cell_size


class PretrainConfig(Section):
    """`pretrain`: an LM-TAD is trained on the trips of a store."""

    data: Path
    """The store that `student-trainer prepare` wrote."""
    out: Path
    """The teacher file to write."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    seed: int = 0
    """Seed of weights, order, crops and dropout; with the same threads it repeats a run bit for bit on the CPU."""
    device: str = pydantic.Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (the first accelerator, otherwise the CPU), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Autocast of the forward pass on an accelerator; auto: bfloat16 where it is native, otherwise float16. The
    CPU computes in float32."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads on the CPU; 0: one a core."""

    n_layer: int = pydantic.Field(4, gt=0)
    """Transformer blocks."""
    n_head: int = pydantic.Field(4, gt=0)
    """Attention heads a block."""
    n_embd: int = pydantic.Field(128, gt=0)
    """Width of the residual stream."""
    bias: bool = False
    """Whether linear layers and layer norms have biases."""
    block_size: int | None = pydantic.Field(None, ge=8)
    """Longest sequence with SOT, tokens; none: the longest trip with SOT and EOT, at most `max_block_size`."""
    max_block_size: int = pydantic.Field(256, ge=8)
    """Bound of the block size where it comes from the data."""
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    """Dropout of embeddings, attention and residuals while training."""

    epochs: int = pydantic.Field(10, gt=0)
    """Passes over the training trips."""
    max_steps: int | None = pydantic.Field(None, gt=0)
    """Stop after this many optimiser steps; none: after the epochs. The schedule ends with the run."""
    batch_tokens: int = pydantic.Field(2048, gt=0)
    """Padded tokens of a batch; a batch holds trips of similar length."""
    crop_probability: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of the training sequences that start at a uniformly drawn place of the trip instead of its origin.
    Trainers ask for windows, SOT + the last few tokens, which a teacher of whole trips has never seen."""
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = pydantic.Field(1e-4, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = pydantic.Field(100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = pydantic.Field(0.1, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    grad_clip: float = pydantic.Field(1.0, gt=0)
    """Largest norm of the gradient."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self
