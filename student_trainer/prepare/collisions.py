"""How well cells tell successors apart: what even a perfect teacher of cells cannot know.

Successors of a road lie close together, so several may fall into one cell. Measured for
several cell sizes on the steps of a split, so that the cell size is chosen knowingly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from shared.arrays import Int64
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.network import Successors

CELL_SIZES = (0.002, 0.001, 0.0005, 0.00025)
"""Cell sizes measured beside the chosen one, degrees."""
MARGIN = 0.02
"""How far the ceiling of a recommended cell size lies above the best floor."""


@dataclasses.dataclass(frozen=True)
class Collisions:
    """One line of the table.

    Attributes:
        cell_size: degrees; the height where cells are not square.
        colliding: share of steps of which at least two candidates share a cell.
        ceiling: accuracy of a teacher that always knows the next cell and guesses within it.
        occupied: cells that hold a road.
        same_cell: share of steps whose next road lies in the cell of the current one.
        chosen: whether the store's tokens use this size.
    """

    cell_size: float
    colliding: float
    ceiling: float
    occupied: int
    same_cell: float
    chosen: bool


def measure(cell: Int64, successors: Successors, steps: Counts, cell_size: float, chosen: bool) -> Collisions:
    """Measures a grid; `cell` is the cell of each road, int64 [N]."""
    num_cells = int(cell.max()) + 1
    _, group, size = np.unique(
        successors.origin * num_cells + cell[successors.roads], return_inverse=True, return_counts=True
    )
    sharing = size[group]  # of each transition: candidates of its road in its cell, itself included
    collides = np.bincount(successors.origin, weights=sharing > 1, minlength=len(cell)) > 0
    taken = np.bincount(sharing, weights=steps.transition)
    return Collisions(
        cell_size=cell_size,
        colliding=int(steps.transition[collides[successors.origin]].sum()) / steps.steps,
        ceiling=math.fsum(taken[1:] / np.arange(1, len(taken))) / steps.steps,
        occupied=len(np.unique(cell)),
        same_cell=int(steps.transition[cell[successors.origin] == cell[successors.roads]].sum()) / steps.steps,
        chosen=chosen,
    )


def recommend(table: Sequence[Collisions], floors: Mapping[str, float]) -> float:
    """The coarsest cell size whose ceiling clears the best floor by `MARGIN`, else the finest.

    Below that floor even a perfect teacher would know less than a table of frequencies.
    """
    needed = max(floors.values()) + MARGIN
    return max((line.cell_size for line in table if line.ceiling >= needed), default=min(x.cell_size for x in table))
