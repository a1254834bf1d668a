"""Settings of `student-trainer prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.config import Section
from shared.grid import Centroid

CELL_SIZE = 0.000125
"""The usual cell size, degrees, 14 m of latitude: where `collisions.advise` begins."""


class GridConfig(Section):
    """From a road to its token."""

    cell_size: float = pydantic.Field(CELL_SIZE, gt=0, allow_inf_nan=False)
    """Height and width of a cell, degrees. Keep the default unless what `prepare` prints recommends a finer size."""
    centroid: Centroid = "vertex_mean"
    """Which point stands for a road: vertex_mean (as public LM-TAD data have it) or line (length-weighted)."""
    bounds: tuple[float, float, float, float] | None = None
    """South, west, north, east in degrees; none: the extent of all road vertices."""
    vocabulary: Literal["occupied", "full"] = "occupied"
    """occupied: only cells that hold a road have a token; full: every cell of the grid has one."""
    teacher: Path | None = None
    """Teacher file whose grid and vocabulary are taken as they are, instead of the four settings above."""
    max_outside: float = pydantic.Field(0.01, ge=0, le=1)
    """Largest share of roads that may lie outside the grid (they are moved to its edge); more is refused."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> GridConfig:
        decided = {"cell_size", "centroid", "bounds", "vocabulary"}
        changed = [n for n in sorted(decided) if getattr(self, n) != type(self).model_fields[n].default]
        if self.teacher is not None and changed:
            raise ValueError(f"grid.teacher decides {', '.join(changed)}; leave that out, or leave the teacher out")
        if self.bounds is not None and not (self.bounds[0] < self.bounds[2] and self.bounds[1] < self.bounds[3]):
            raise ValueError("grid.bounds must be south, west, north, east with south < north and west < east")
        return self


class ZonesConfig(Section):
    """Partition of the roads, used where the raw directory has no `road_network_partition`."""

    count: int = pydantic.Field(300, ge=1)
    """Number of zones."""
    min_roads: int = pydantic.Field(10, ge=1)
    """Roads per zone on average, at least: a small network gets fewer zones than `count`."""
    seed: int = pydantic.Field(0, ge=0, lt=2**31)
    """Seed of the partitioner."""


class PrepareConfig(Section):
    """Root schema of `prepare`."""

    raw: Path
    """Directory in HOSER format: roadmap.geo, roadmap.rel, train.csv, val.csv, test.csv."""
    out: Path
    """Store to write; an older store there is replaced."""
    strict: bool = False
    """Refuse, instead of dropping and counting, trips that leave the road network or go back in time."""
    grid: GridConfig = GridConfig()
    """Cells and tokens."""
    zones: ZonesConfig = ZonesConfig()
    """Zones of the road network."""
    workers: int = pydantic.Field(0, ge=0)
    """Threads that read trips at the same time; 0 for one a core. The store does not depend on it."""
