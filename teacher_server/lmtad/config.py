"""Settings of `export`."""

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
