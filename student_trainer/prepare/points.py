"""Which end points of roads are the same: those that are equal, and those that lie a hair's breadth apart.

Coordinates are compared by value, not as they are printed: the same point may be written with six decimals in one row
and with seven in another.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from shared.arrays import Float64, Int64

SAME_POINT_DEGREES = 0.95e-6
"""Points that are as near in latitude and longitude are the same, 0.1 m: less than a step of the sixth decimal, so that
points with six decimals stay apart, and more than what cutting or rounding to six decimals moves a point."""


def number(points: Float64) -> tuple[Int64, int]:
    """Equal numbers for the same points.

    Args:
        points: float64 [M, 2], degrees.

    Returns:
        int64 [M]; and how many distinct points were taken for another one near them.
    """
    distinct, index = np.unique(points, axis=0, return_inverse=True)
    near = cKDTree(distinct).query_pairs(SAME_POINT_DEGREES, p=np.inf, output_type="ndarray")
    if not len(near):
        return index.reshape(-1).astype(np.int64), 0
    links = coo_array((np.ones(len(near), bool), near.T), shape=(len(distinct), len(distinct)))
    count, group = connected_components(links, directed=False)
    return group[index.reshape(-1)].astype(np.int64), len(distinct) - int(count)
