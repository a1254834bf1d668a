"""The grid: latitude and longitude -> cell. The only place that divides by a cell size."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydantic

from shared.arrays import Bool, Int64
from shared.config import Section
from shared.errors import ConfigError

Centroid = Literal["vertex_mean", "line"]
"""Which point stands for a road: the plain mean of its vertices (what public LM-TAD
converters use) or the length-weighted centroid of its line."""


class Grid(Section):
    """A grid of latitude and longitude; cell = row * cols + col, row 0 in the south."""

    min_lat: float
    """Southern bound, degrees."""
    min_lng: float
    """Western bound, degrees."""
    max_lat: float
    """Northern bound, degrees."""
    max_lng: float
    """Eastern bound, degrees."""
    cell_lat: float = pydantic.Field(gt=0)
    """Height of a cell, degrees."""
    cell_lng: float = pydantic.Field(gt=0)
    """Width of a cell, degrees."""
    rows: int = pydantic.Field(gt=0)
    """Rows, south to north."""
    cols: int = pydantic.Field(gt=0)
    """Columns, west to east."""
    centroid: Centroid = "vertex_mean"
    """Which point stands for a road."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Grid:
        if not (self.min_lat < self.max_lat and self.min_lng < self.max_lng):
            raise ValueError("bounds are empty: expected south < north and west < east")
        return self

    @classmethod
    def from_bounds(
        cls,
        bounds: tuple[float, float, float, float],
        cell_lat: float,
        cell_lng: float,
        centroid: Centroid = "vertex_mean",
    ) -> Grid:
        """The grid over (south, west, north, east): `int(span / cell) + 1` rows and columns.

        Raises:
            ConfigError: there are more cells than can be counted.
            pydantic.ValidationError: the bounds are empty.
        """
        south, west, north, east = bounds
        if not (math.isfinite((north - south) / cell_lat) and math.isfinite((east - west) / cell_lng)):
            raise ConfigError(
                f"cells of {cell_lat} x {cell_lng} degrees are too small to be counted; choose larger ones"
            )
        return cls(
            min_lat=south,
            min_lng=west,
            max_lat=north,
            max_lng=east,
            cell_lat=cell_lat,
            cell_lng=cell_lng,
            rows=int((north - south) / cell_lat) + 1,
            cols=int((east - west) / cell_lng) + 1,
            centroid=centroid,
        )

    @property
    def cells(self) -> int:
        """Number of cells, rows * cols."""
        return self.rows * self.cols

    def cell(self, lat: npt.ArrayLike, lng: npt.ArrayLike) -> Int64:
        """Cell of each point: floor of float64 offsets, clamped to the grid.

        Args:
            lat, lng: degrees, any shape.

        Returns:
            int64 cells of the same shape.
        """
        row = np.floor((np.asarray(lat, np.float64) - self.min_lat) / self.cell_lat)
        col = np.floor((np.asarray(lng, np.float64) - self.min_lng) / self.cell_lng)
        row = np.clip(row, 0, self.rows - 1).astype(np.int64)
        col = np.clip(col, 0, self.cols - 1).astype(np.int64)
        return row * self.cols + col

    def contains(self, lat: npt.ArrayLike, lng: npt.ArrayLike) -> Bool:
        """Whether each point lies within the bounds (`cell` clamps the others to the edge)."""
        lat, lng = np.asarray(lat, np.float64), np.asarray(lng, np.float64)
        inside = (lat >= self.min_lat) & (lat <= self.max_lat)
        return inside & (lng >= self.min_lng) & (lng <= self.max_lng)
