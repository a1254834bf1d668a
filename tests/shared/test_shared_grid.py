"""Cells by their definition, with Python's own floats."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.grid import Grid

GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)

latitudes = st.floats(-89, 88)
longitudes = st.floats(-179, 178)
spans = st.floats(1e-3, 1.0)
sizes = st.floats(1e-4, 0.5)


def cell_of(grid: Grid, lat: float, lng: float) -> int:
    """The definition, one point at a time."""
    row = math.floor((lat - grid.min_lat) / grid.cell_lat)
    col = math.floor((lng - grid.min_lng) / grid.cell_lng)
    return min(max(row, 0), grid.rows - 1) * grid.cols + min(max(col, 0), grid.cols - 1)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    south, west = draw(latitudes), draw(longitudes)
    return Grid.from_bounds((south, west, south + draw(spans), west + draw(spans)), draw(sizes), draw(sizes))


@given(grids(), st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), max_size=8))
def test_cell_is_row_times_columns_plus_column(grid: Grid, points: list[tuple[float, float]]) -> None:
    points = [*points, (grid.min_lat, grid.min_lng), (grid.max_lat, grid.max_lng)]
    lat, lng = (np.array(axis) for axis in zip(*points, strict=True))
    cells = grid.cell(lat, lng)
    assert cells.dtype == np.int64
    assert cells.tolist() == [cell_of(grid, *point) for point in points]
    assert cells.min() >= 0
    assert cells.max() < grid.cells


@given(grids())
def test_every_point_within_the_bounds_has_a_row_and_a_column_of_its_own(grid: Grid) -> None:
    assert grid.rows == int((grid.max_lat - grid.min_lat) / grid.cell_lat) + 1
    assert grid.cols == int((grid.max_lng - grid.min_lng) / grid.cell_lng) + 1
    assert math.floor((grid.max_lat - grid.min_lat) / grid.cell_lat) == grid.rows - 1
    assert math.floor((grid.max_lng - grid.min_lng) / grid.cell_lng) == grid.cols - 1


def test_bounds_and_cell_size_decide_rows_and_columns() -> None:
    assert (GRID.rows, GRID.cols, GRID.cells) == (5, 8, 40)


@pytest.mark.parametrize(
    ("lat", "lng", "row", "col"),
    [
        (37.0, -122.0, 0, 0),
        (37.005, -121.995, 0, 0),
        (37.015, -121.995, 1, 0),
        (37.005, -121.985, 0, 1),
        (36.0, -123.0, 0, 0),
        (38.0, -120.0, 4, 7),
        (36.0, -120.0, 0, 7),
        (38.0, -123.0, 4, 0),
    ],
)
def test_points_outside_belong_to_the_edge(lat: float, lng: float, row: int, col: int) -> None:
    assert GRID.cell(lat, lng) == row * GRID.cols + col


def test_shape_is_kept() -> None:
    lat = np.full((2, 3), 37.02)
    assert GRID.cell(lat, np.full((2, 3), -121.95)).shape == (2, 3)
    assert GRID.cell([], []).shape == (0,)


def test_float32_input_is_computed_in_float64() -> None:
    lat, lng = np.float32(37.0199), np.float32(-121.9501)
    assert GRID.cell(lat, lng) == cell_of(GRID, float(lat), float(lng))


@given(grids(), st.floats(-90, 90), st.floats(-180, 180))
def test_contains_is_within_the_bounds_inclusive(grid: Grid, lat: float, lng: float) -> None:
    inside = grid.min_lat <= lat <= grid.max_lat and grid.min_lng <= lng <= grid.max_lng
    assert bool(grid.contains(lat, lng)) is inside
    corners_lat = [grid.min_lat, grid.min_lat, grid.max_lat, grid.max_lat]
    corners_lng = [grid.min_lng, grid.max_lng, grid.min_lng, grid.max_lng]
    assert bool(grid.contains(corners_lat, corners_lng).all())


@pytest.mark.parametrize(
    "bounds", [(1.0, 0.0, 1.0, 1.0), (2.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1.0), (0.0, 2.0, 1.0, 1.0)]
)
def test_empty_bounds_are_refused(bounds: tuple[float, float, float, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"bounds are empty|greater than 0"):
        Grid.from_bounds(bounds, 0.1, 0.1)


def test_cells_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        Grid.from_bounds((0.0, 0.0, 1.0, 1.0), 1e-320, 0.1)


@pytest.mark.parametrize("change", [{"cell_lat": 0.0}, {"cell_lng": -1.0}, {"rows": 0}, {"cols": 0}, {"centroid": "x"}])
def test_values_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(change))):
        Grid.model_validate(GRID.model_dump() | change)


@pytest.mark.parametrize("name", ["min_lat", "max_lng", "cell_lat"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite(name: str, value: float) -> None:
    with pytest.raises(pydantic.ValidationError, match=name):
        Grid.model_validate(GRID.model_dump() | {name: value})
