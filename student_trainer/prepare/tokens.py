"""Road -> token: grid and vocabulary by the settings, or those of a teacher file."""

from __future__ import annotations

import logging

import numpy as np
import pydantic

from shared import teacher_file
from shared.arrays import Float64, Int32
from shared.errors import CompatibilityError, ConfigError, DataError
from shared.grid import Centroid, Grid
from shared.vocab import Tokeniser, Vocabulary
from student_trainer.prepare.config import GridConfig
from student_trainer.prepare.words import counted, form

Bounds = tuple[float, float, float, float]

log = logging.getLogger(__name__)


def extent(vertices: Float64) -> Bounds:
    """South, west, north, east of all vertices, degrees."""
    (south, west), (north, east) = vertices.min(axis=0), vertices.max(axis=0)
    return float(south), float(west), float(north), float(east)


def fits(bounds: Bounds, cell_size: float) -> bool:
    """Whether a grid of such cells over the bounds has no more of them than tokens can have numbers."""
    try:
        make_grid(bounds, cell_size, "vertex_mean")
    except ConfigError:
        return False
    return True


def make_grid(bounds: Bounds, cell_size: float, centroid: Centroid) -> Grid:
    """The grid of square cells over the bounds; raises `ConfigError` if it has too many cells."""
    try:
        grid = Grid.from_bounds(bounds, cell_size, cell_size, centroid)
    except pydantic.ValidationError:
        raise DataError(f"no grid over {bounds}: all roads lie on one line; set grid.bounds") from None
    if grid.cells > np.iinfo(np.int32).max:
        raise ConfigError(f"grid.cell_size {cell_size} gives {grid.rows} x {grid.cols} cells; choose a larger one")
    return grid


def make_tokeniser(config: GridConfig, bounds: Bounds, centroids: dict[Centroid, Float64]) -> Tokeniser:
    """The tokeniser that the settings ask for.

    Args:
        config: the settings.
        bounds: extent of the network, used where the settings give none.
        centroids: the points that can stand for the roads, float64 [N, 2] each.

    Raises:
        CompatibilityError: the teacher's file has no grid.
    """
    if config.teacher is not None:
        tokeniser = teacher_file.read_header(config.teacher).tokeniser
        grid_of(tokeniser)
        return tokeniser
    grid = make_grid(config.bounds or bounds, config.cell_size, config.centroid)
    points = centroids[config.centroid]
    if config.vocabulary == "full":
        return Tokeniser(Vocabulary.full(grid.cells), grid)
    return Tokeniser(Vocabulary.of_occupied(grid.cell(points[:, 0], points[:, 1])), grid)


def grid_of(tokeniser: Tokeniser) -> Grid:
    """Its grid; raises `CompatibilityError` where a teacher's file knows none."""
    if tokeniser.grid is None:
        raise CompatibilityError("grid.teacher has no grid; export the teacher again with --bounds and --cell-size")
    return tokeniser.grid


def road_tokens(tokeniser: Tokeniser, points: Float64, max_outside: float) -> tuple[Int32, int]:
    """Token of each road, int32 [N], and how many roads lie outside the grid.

    Raises:
        CompatibilityError: more than `max_outside` of the roads lie outside, or a road's
            cell has no token.
    """
    lat, lng = points.T
    g = grid_of(tokeniser)
    outside = int(np.count_nonzero(~g.contains(lat, lng)))
    if outside > max_outside * len(points):
        raise CompatibilityError(
            f"{outside} of {counted(len(points), 'road')} {form(outside, 'lies', 'lie')} outside the grid "
            f"(latitude {g.min_lat}..{g.max_lat}, longitude {g.min_lng}..{g.max_lng}): is it another city's? "
            "grid.max_outside allows more"
        )
    if outside:
        log.warning("roads outside the grid are moved to its edge: %d of %d", outside, len(points))
    return tokeniser.tokens(lat, lng), outside
