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
from student_trainer.prepare.config import CELL_SIZE
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.network import Successors

CELL_SIZES = (0.002, 0.001, CELL_SIZE, 0.00025)
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


@dataclasses.dataclass(frozen=True)
class Advice:
    """Which cell size to take, and why: the one place that decides it."""

    cell_size: float
    reason: str


def advise(table: Sequence[Collisions], floors: Mapping[str, float]) -> Advice:
    """The usual size, or the coarsest finer one that is needed.

    A size is enough if its ceiling clears the best floor by `MARGIN`: below that floor even a perfect teacher of cells
    would know less than a table of frequencies. Sizes coarser than the usual one are not recommended even where they
    are enough: candidates that share a cell are what a teacher cannot tell apart, while finer cells cost a row of an
    embedding each, and at most one a road.
    """
    best = max(floors.values())
    fine = [line for line in table if line.cell_size <= CELL_SIZE] or [min(table, key=lambda line: line.cell_size)]
    enough = [line for line in fine if line.ceiling >= best + MARGIN]
    found = max(enough or fine, key=lambda line: line.cell_size if enough else -line.cell_size)
    points = 100 * (found.ceiling - best)
    side = "above" if points >= 0 else "below"
    above = f"its ceiling of {100 * found.ceiling:.1f} % is {abs(points):.1f} points {side} the best floor"
    if not enough:
        rule = f"the finest measured: none clears the best floor by {100 * MARGIN:g} points"
    elif found.cell_size == CELL_SIZE:
        rule = f"the usual size, and enough: it must clear the best floor by {100 * MARGIN:g} points"
    else:
        rule = f"the coarsest up to the usual {CELL_SIZE:g} that clears the best floor by {100 * MARGIN:g} points"
    return Advice(found.cell_size, f"{rule}; {above} ({100 * best:.1f} %)")
