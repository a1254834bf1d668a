"""Distances between pairs of trips as sequences of points, compiled; every pair by its definition, none approximated.

Points are unit vectors from the Earth's centre: the great circle between two of them is 2 R asin(chord / 2), which
grows with the chord, so that only what is reported needs the arcsine.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shared.arrays import Float64, Int64
from shared.compiled import compiled
from shared.provenance import cores
from student_trainer.data.geometry import EARTH_RADIUS_M

RADIUS_KM = EARTH_RADIUS_M / 1000
CHUNKS_A_CORE = 8


def unit_vectors(lat_lng: Float64) -> Float64:
    """Points [N, 2] in degrees as unit vectors [N, 3]."""
    phi, lamda = np.radians(lat_lng).T
    return np.stack([np.cos(phi) * np.cos(lamda), np.cos(phi) * np.sin(lamda), np.sin(phi)], axis=1)


def path_lengths_km(points: Float64, offsets: Int64) -> Float64:
    """Sum of the great circles between consecutive points of each row: float64 [n].

    Args:
        points: [L, 3] unit vectors, rows back to back.
        offsets: [n + 1], no row empty.
    """
    chords = np.linalg.norm(np.diff(points, axis=0), axis=1)
    steps = np.append(2 * RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1)), 0.0)
    steps[offsets[1:] - 1] = 0
    return np.add.reduceat(steps, offsets[:-1])


def local_distances(
    left: Float64, left_offsets: Int64, right: Float64, right_offsets: Int64, tolerance_km: float
) -> tuple[Float64, Float64, Float64]:
    """Hausdorff distance, dynamic time warping and edit distance on real sequences of n pairs of rows.

    - Hausdorff: the larger of the two directed ones, km.
    - DTW: the least sum of distances along a warping path with steps (1, 0), (0, 1) and (1, 1), km.
    - EDR (Chen et al. 2005): edits, points within `tolerance_km` being equal, divided by the longer row's points.

    Args:
        left, right: [L, 3] unit vectors, rows back to back.
        left_offsets, right_offsets: [n + 1], no row empty.
        tolerance_km: of EDR.

    Returns:
        float64 [n] each.
    """
    count = len(left_offsets) - 1
    results = np.empty((3, count))
    work = (np.diff(left_offsets) * np.diff(right_offsets)).cumsum()
    parts = cores() * CHUNKS_A_CORE
    cuts = np.unique(np.searchsorted(work, np.arange(1, parts) * (work[-1] / parts)))
    bounds = np.unique([0, *cuts, count])
    chord = 2 * math.sin(tolerance_km / RADIUS_KM / 2)

    def fill(first: int, last: int) -> None:
        _fill(left, left_offsets, right, right_offsets, chord * chord, first, last, results)

    with ThreadPoolExecutor(cores()) as pool:
        for future in [pool.submit(fill, int(a), int(b)) for a, b in itertools.pairwise(bounds)]:
            future.result()
    return results[0], results[1], results[2]


@compiled
def _fill(
    left: Float64,
    left_offsets: Int64,
    right: Float64,
    right_offsets: Int64,
    squared_tolerance: float,
    first: int,
    last: int,
    results: Float64,
) -> None:
    widest = 1
    for pair in range(first, last):
        widest = max(widest, right_offsets[pair + 1] - right_offsets[pair])
    squared, warped, edits = np.empty(widest), np.empty(widest + 1), np.empty(widest + 1, np.int64)
    nearest = np.empty(widest)
    for pair in range(first, last):
        a, b = left[left_offsets[pair] : left_offsets[pair + 1]], right[right_offsets[pair] : right_offsets[pair + 1]]
        rows, columns = len(a), len(b)
        warped[: columns + 1], warped[0] = math.inf, 0.0
        nearest[:columns] = math.inf
        for j in range(columns + 1):
            edits[j] = j
        farthest = 0.0
        for i in range(rows):
            least = math.inf
            for j in range(columns):
                dx, dy, dz = a[i, 0] - b[j, 0], a[i, 1] - b[j, 1], a[i, 2] - b[j, 2]
                squared[j] = dx * dx + dy * dy + dz * dz
                least = min(least, squared[j])
                nearest[j] = min(nearest[j], squared[j])
            farthest = max(farthest, least)
            diagonal, warped_left = warped[0], math.inf
            warped[0] = math.inf
            corner, edits[0] = edits[0], i + 1
            for j in range(columns):
                cost = 2 * RADIUS_KM * math.asin(min(1.0, math.sqrt(squared[j]) / 2))
                warped_left = cost + min(diagonal, warped[j + 1], warped_left)
                diagonal, warped[j + 1] = warped[j + 1], warped_left
                differs = 0 if squared[j] <= squared_tolerance else 1
                fewest = min(corner + differs, edits[j + 1] + 1, edits[j] + 1)
                corner, edits[j + 1] = edits[j + 1], fewest
        for j in range(columns):
            farthest = max(farthest, nearest[j])
        results[0, pair] = 2 * RADIUS_KM * math.asin(min(1.0, math.sqrt(farthest) / 2))
        results[1, pair] = warped[columns]
        results[2, pair] = edits[columns] / max(rows, columns)
