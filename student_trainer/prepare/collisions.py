"""How well cells tell successors apart: what even a perfect teacher of cells cannot know.

Successors of a road lie close together, so several may fall into one cell. Measured for
several cell sizes on the steps of a split, so that the cell size is chosen knowingly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from shared.arrays import Int64
from student_trainer.prepare.config import CELL_SIZE
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.network import Successors

CELL_SIZES = (0.002, 0.001, 0.0005, 0.00025, CELL_SIZE, 0.0000625)
"""Cell sizes measured beside the chosen one, degrees."""
MARGIN = 0.01
"""How far the ceiling of a recommended cell size may lie below that of the finest one measured."""


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


def advise(table: Sequence[Collisions]) -> Advice:
    """The usual size, or the coarsest finer one that is fine enough.

    Sizes coarser than the usual one are not recommended: candidates that share a cell are what a teacher cannot tell
    apart, while finer cells cost a row of an embedding each, and at most one a road.
    """
    finest = min(table, key=lambda line: line.cell_size)
    fine = [line for line in table if line.cell_size <= CELL_SIZE] or [finest]
    enough = [line for line in fine if is_enough(line.ceiling, finest.ceiling)]
    found = max(enough, key=lambda line: line.cell_size)
    ceiling = f"its ceiling is {100 * found.ceiling:.1f} %"
    if found is finest:
        return Advice(found.cell_size, f"the finest measured; {ceiling}")
    rule = "the usual size, and fine enough" if found.cell_size == CELL_SIZE else "the coarsest that is fine enough"
    beside = f"that of {degrees(finest.cell_size)} {100 * finest.ceiling:.1f} %"
    return Advice(found.cell_size, f"{rule}: {ceiling}, {beside} (up to {100 * MARGIN:g} point below is enough)")


def is_enough(ceiling: float, finest: float) -> bool:
    """Whether a size's ceiling is near enough to that of the finest one."""
    return ceiling >= finest - MARGIN


def degrees(cell_size: float) -> str:
    """A cell size without an exponent."""
    return np.format_float_positional(cell_size, trim="-")
