"""The plan of a city: junctions and streets, in metres east and north of its south-west corner.

An irregular lattice with a hierarchy of classes, a river with few bridges, a park, one-way
residential streets, missing blocks, some diagonals, and a motorway ring around it all.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from shared.arrays import Float64

Node = tuple[int, int]
"""Column and row of a lattice junction; the ring's junctions have column -1."""

SPACING_M = (100.0, 190.0)
RIVER_M = 230.0
RING_DISTANCE_M = 320.0
JITTER_M = 14.0
ONE_WAY_SHARE = 0.7
"""Share of the residential lines that are one-way streets."""
MISSING_SHARE = 0.09
"""Share of the residential blocks that were never built."""


@dataclasses.dataclass(frozen=True, eq=False)
class Street:
    """A street between two junctions.

    Attributes:
        start, end: its junctions.
        road_class: as in OpenStreetMap's `highway`.
        one_way: whether it can be driven from start to end only.
        line: float64 [K, 2] metres east and north, from start to end.
    """

    start: Node
    end: Node
    road_class: str
    one_way: bool
    line: Float64


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Streets, and the landscape for the picture: float64 [K, 2] metres."""

    streets: list[Street]
    river: Float64
    park: Float64


def make_plan(columns: int, rows: int, random: np.random.Generator) -> Plan:
    """Draws a city of the given number of streets each way (at least 9)."""
    river_row = rows // 2 - 1  # the river flows between this row and the next
    place = _lattice(columns, rows, river_row, random)
    park = _park(columns, rows, river_row)
    gone = {(column, row) for column in park[0][1:-1] for row in park[1][1:-1]}
    builder = _Builder(place, gone, random)
    builder.lay_lines(columns, rows, river_row)
    builder.lay_diagonals(columns, rows, river_row)
    builder.lay_ring(columns, rows)
    middle = [(place[c, river_row] + place[c, river_row + 1]) / 2 for c in range(columns)]
    river = np.array([middle[0] - [900, 0], *middle, middle[-1] + [900, 0]])
    ends = [(park[0][a], park[1][b]) for a, b in ((0, 0), (-1, 0), (-1, -1), (0, -1))]
    return Plan(builder.streets, river, np.array([place[node] for node in ends]))


def line_class(index: int) -> str:
    """Class of a lattice line: every fourth is primary, those between are secondary or residential."""
    return {0: "secondary", 2: "primary"}.get(index % 4, "residential")


def _lattice(columns: int, rows: int, river_row: int, random: np.random.Generator) -> dict[Node, Float64]:
    """Junctions of bent lines at uneven distances."""
    step_x, step_y = random.uniform(*SPACING_M, columns), random.uniform(*SPACING_M, rows)
    step_y[river_row + 1] = RIVER_M
    x, y = np.meshgrid(np.cumsum(step_x), np.cumsum(step_y))
    phase = random.uniform(0, 2 * np.pi, 2)
    bent_x = x + 55 * np.sin(y / 420 + phase[0]) + random.normal(0, JITTER_M, x.shape)
    bent_y = y + 65 * np.sin(x / 560 + phase[1]) + random.normal(0, JITTER_M, x.shape)
    return {
        (column, row): np.array([bent_x[row, column], bent_y[row, column]])
        for row in range(rows)
        for column in range(columns)
    }


def _park(columns: int, rows: int, river_row: int) -> tuple[range, range]:
    """Columns and rows of the park: 3 x 3 blocks north of the river whose inner junctions are gone."""
    first_column, first_row = (columns - 3) * 2 // 3, min(river_row + 3, rows - 4)
    return range(first_column, first_column + 4), range(first_row, first_row + 4)


class _Builder:
    """Collects streets; each method adds one kind."""

    def __init__(self, place: dict[Node, Float64], gone: set[Node], random: np.random.Generator) -> None:
        self.place = place
        self.gone = gone
        self.random = random
        self.streets: list[Street] = []

    def lay_lines(self, columns: int, rows: int, river_row: int) -> None:
        """The lattice; only primary lines cross the river."""
        for row in range(rows):
            nodes = [(column, row) for column in range(columns)]
            self._lay_line(nodes, row, blocked=None)
        for column in range(columns):
            nodes = [(column, row) for row in range(rows)]
            self._lay_line(nodes, column, blocked=river_row if line_class(column) != "primary" else None)

    def _lay_line(self, nodes: list[Node], index: int, blocked: int | None) -> None:
        road_class = line_class(index)
        one_way = road_class == "residential" and self.random.random() < ONE_WAY_SHARE
        if one_way and index % 4 == 1:  # neighbouring one-way streets run against each other
            nodes = nodes[::-1]
        for start, end in itertools.pairwise(nodes):
            crosses_river = blocked is not None and {start[1], end[1]} == {blocked, blocked + 1}
            missing = road_class == "residential" and self.random.random() < MISSING_SHARE
            if not (crosses_river or missing):
                self._lay(start, end, road_class, one_way)

    def lay_diagonals(self, columns: int, rows: int, river_row: int) -> None:
        """Stairs of diagonals on both banks; a junction has at most one, so at most five arms."""
        for first, last in ((1, river_row), (river_row + 1, rows - 1)):
            column, row = 1, first
            while column + 1 < columns and row + 1 <= last:
                self._lay((column, row), (column + 1, row + 1), "secondary", one_way=False)
                column, row = column + 2, row + 1

    def lay_ring(self, columns: int, rows: int) -> None:
        """A motorway around the lattice with a ramp at both ends of every primary line."""
        ends = [((c, r), (0, s)) for c in range(columns) if line_class(c) == "primary" for r, s in _sides(rows)]
        ends += [((c, r), (s, 0)) for r in range(rows) if line_class(r) == "primary" for c, s in _sides(columns)]
        centre = np.mean(list(self.place.values()), axis=0)
        ramps: list[tuple[float, Node, Node]] = []
        for number, (node, outwards) in enumerate(ends):
            ring = (-1, number)
            self.place[ring] = self.place[node] + RING_DISTANCE_M * np.array(outwards, np.float64)
            east, north = self.place[ring] - centre
            ramps.append((float(np.arctan2(north, east)), node, ring))
        ramps.sort()
        for _, node, ring in ramps:
            self._lay(node, ring, "motorway_link", one_way=False)
        rings = [ring for _, _, ring in ramps]
        for start, end in zip(rings, rings[1:] + rings[:1], strict=True):
            self._lay(start, end, "motorway", one_way=False, bulge_from=centre)

    def _lay(self, start: Node, end: Node, road_class: str, one_way: bool, bulge_from: Float64 | None = None) -> None:
        """Adds a street, slightly bent, or bulging away from a point; none where a junction is gone."""
        if start in self.gone or end in self.gone:
            return
        a, b = self.place[start], self.place[end]
        share = np.linspace(0, 1, 6 if bulge_from is not None else 2 + int(self.random.integers(0, 3)))[1:-1, None]
        inner = a + share * (b - a)
        if bulge_from is not None:
            inner = inner + 0.2 * share * (1 - share) * (inner - bulge_from)
        else:
            inner = inner + self.random.normal(0, 4, inner.shape)
        self.streets.append(Street(start, end, road_class, one_way, np.vstack([a, inner, b])))


def _sides(count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first and last index of a line, each with the direction outwards."""
    return (0, -1), (count - 1, 1)
