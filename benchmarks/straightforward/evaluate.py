"""Metrics of generated trips from their formulas, in plain Python loops: the way one would write them first.

Points are (latitude, longitude) in degrees. Nothing is vectorised and nothing compiled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Point = tuple[float, float]
Trip = Sequence[Point]

EARTH_RADIUS_KM = 6371.0088


def haversine_km(a: Point, b: Point) -> float:
    """Great-circle distance."""
    phi_a, phi_b = math.radians(a[0]), math.radians(b[0])
    dphi, dlambda = phi_b - phi_a, math.radians(b[1]) - math.radians(a[1])
    h = math.sin(dphi / 2) ** 2 + math.cos(phi_a) * math.cos(phi_b) * math.sin(dlambda / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(h))


def distance_km(trip: Trip) -> float:
    """Sum of the distances between consecutive points."""
    return sum(haversine_km(a, b) for a, b in itertools.pairwise(trip))


def radius_km(trip: Trip) -> float:
    """Mean distance from the mean point."""
    middle = sum(p[0] for p in trip) / len(trip), sum(p[1] for p in trip) / len(trip)
    return sum(haversine_km(p, middle) for p in trip) / len(trip)


def hausdorff_km(a: Trip, b: Trip) -> float:
    """The larger of both directed distances."""
    there = max(min(haversine_km(p, q) for q in b) for p in a)
    back = max(min(haversine_km(p, q) for p in a) for q in b)
    return max(there, back)


def dtw_km(a: Trip, b: Trip) -> float:
    """Dynamic time warping: least sum of distances."""
    table = [[math.inf] * (len(b) + 1) for _ in range(len(a) + 1)]
    table[0][0] = 0.0
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            before = min(table[i - 1][j - 1], table[i - 1][j], table[i][j - 1])
            table[i][j] = haversine_km(a[i - 1], b[j - 1]) + before
    return table[-1][-1]


def edr(a: Trip, b: Trip, tolerance_km: float = 0.1) -> float:
    """Edit distance on real sequences, divided by the longer one's points."""
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            differs = 0 if haversine_km(a[i - 1], b[j - 1]) <= tolerance_km else 1
            table[i][j] = min(table[i - 1][j - 1] + differs, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1] / max(len(a), len(b))


def divergence_nats(real: Sequence[float], made: Sequence[float]) -> float:
    """Jensen-Shannon divergence of two samples in 99 bins up to the largest real value and one above."""
    width = max(real) / 99
    counts = [[0] * 100, [0] * 100]
    for side, values in zip(counts, (real, made), strict=True):
        for value in values:
            side[min(int(value / width), 99)] += 1
    total = 0.0
    for p, q in zip(*counts, strict=True):
        share_p, share_q = p / len(real), q / len(made)
        middle = (share_p + share_q) / 2
        for share in (share_p, share_q):
            if share > 0:
                total += share * math.log(share / middle) / 2
    return total
