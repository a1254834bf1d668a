"""The compiled half of `batch.py`: what is computed for every pair of steps and for every candidate.

They hold no lock of the interpreter, so that the thread that builds batches ahead runs beside the student.
Distances follow `geometry.haversine_m` operation by operation; only the sines and the arcsine of small angles are
the first terms of their series, whose remainder is below float64's rounding.

Shapes: N roads, S pairs of a road and a successor; B trips, T longest trip in steps, P positions, K candidates.
"""

from __future__ import annotations

import math

import numpy as np

from shared.arrays import Float32, Float64, Int32, Int64
from shared.compiled import compiled
from student_trainer.data.geometry import EARTH_RADIUS_M

DISTANCE_CLIP_M = 1000.0
INTERVAL_CLIP_MIN = np.float32(5)

SMALL = 0.01
"""Radians: half the angles up to 127 km apart. The first term that a series leaves out is below 1e-17 of the sum."""


@compiled
def _sine(x: float) -> float:
    """sin x for |x| <= SMALL."""
    square = x * x
    return x - x * square * (1 / 6) * (1 - square * (1 / 20) * (1 - square * (1 / 42)))


@compiled
def _arcsine(x: float) -> float:
    """arcsin x for 0 <= x <= 2 SMALL."""
    square = x * x
    return x + x * square * (1 / 6 + square * (3 / 40 + square * (15 / 336 + square * (105 / 3456))))


@compiled
def _metres(point1: Float64, point2: Float64) -> float:
    """Great-circle distance of two points (latitude, longitude in radians, cosine of the latitude)."""
    half_dphi, half_dlambda = (point2[0] - point1[0]) / 2, (point2[1] - point1[1]) / 2
    if abs(half_dphi) <= SMALL and abs(half_dlambda) <= SMALL:
        a = _sine(half_dphi) ** 2 + point1[2] * point2[2] * _sine(half_dlambda) ** 2
        return 2 * EARTH_RADIUS_M * _arcsine(math.sqrt(a))
    a = math.sin(half_dphi) ** 2 + point1[2] * point2[2] * math.sin(half_dlambda) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(math.sqrt(a), 1.0))


@compiled
def _clipped_distance(metres: float) -> float:
    """Metres between two steps as the trip encoder reads them."""
    return min(metres, DISTANCE_CLIP_M) / DISTANCE_CLIP_M


@compiled
def _clipped_interval(minutes1: np.float32, minutes2: np.float32) -> np.float32:
    """Minutes between two steps as the trip encoder reads them."""
    return min(abs(minutes1 - minutes2), INTERVAL_CLIP_MIN) / INTERVAL_CLIP_MIN


@compiled
def fill_pairs(
    distance: Float32,
    interval: Float32,
    point: Float64,
    minutes: Float32,
    length: Int64,
) -> None:
    """Fills in every step's distance and interval to the steps before it; the rest of the arrays stays as it is.

    Args:
        distance, interval: float32 [B, T, T] to fill: metres, clipped, in 1 km; minutes, clipped, in fives.
        point: float64 [P, 3] latitude and longitude in radians and cosine of the latitude, of each step's road.
        minutes: float32 [P] time of day of each step.
        length: int64 [B] steps per trip; P = sum.
    """
    phi, lamda, cosine = np.empty(length.max()), np.empty(length.max()), np.empty(length.max())
    first = 0
    for trip in range(len(length)):
        steps = length[trip]
        for i in range(steps):
            phi[i], lamda[i], cosine[i] = point[first + i]
        wide = max(np.ptp(phi[:steps]), np.ptp(lamda[:steps])) / 2 > SMALL
        for i in range(1, steps):
            if wide:
                for j in range(i):
                    distance[trip, i, j] = _clipped_distance(_metres(point[first + j], point[first + i]))
            else:  # no branch within: the loop runs on vector registers
                for j in range(i):
                    half_dphi, half_dlambda = (phi[i] - phi[j]) / 2, (lamda[i] - lamda[j]) / 2
                    a = _sine(half_dphi) ** 2 + cosine[j] * cosine[i] * _sine(half_dlambda) ** 2
                    distance[trip, i, j] = _clipped_distance(2 * EARTH_RADIUS_M * _arcsine(math.sqrt(a)))
            for j in range(i):
                interval[trip, i, j] = _clipped_interval(minutes[first + i], minutes[first + j])
        first += steps


@compiled
def fill_last_pairs(
    distance: Float32,
    interval: Float32,
    path: Int32,
    length: Int64,
    road: Int64,
    minutes: Float32,
    point: Float64,
) -> None:
    """The last row of `fill_pairs` for each of many paths whose steps are kept in a table.

    Args:
        distance, interval: float32 [R, W] to fill up to each path's last step, where they are 0.
        path: int32 [R, W] indices of each path's steps in the table.
        length: int64 [R] steps of each path.
        road: int64 [M] road of each step in the table; minutes: float32 [M].
        point: float64 [N, 3] as for `fill_pairs`, of each road.
    """
    for row in range(len(length)):
        last = path[row, length[row] - 1]
        here = point[road[last]]
        for j in range(length[row] - 1):
            step = path[row, j]
            distance[row, j] = _clipped_distance(_metres(point[road[step]], here))
            interval[row, j] = _clipped_interval(minutes[last], minutes[step])
        distance[row, length[row] - 1] = 0
        interval[row, length[row] - 1] = 0


@compiled
def fill_candidates(
    road: Int64,
    distance: Float32,
    angle: Float32,
    label: Int64,
    first: Int64,
    length: Int64,
    next_road: Int32,
    destination: Int64,
    towards_destination: Float64,
    successors: Int32,
    towards_successor: Float64,
    point: Float64,
) -> None:
    """Fills in the candidates of every position, and which of them is the next road.

    Args:
        road, distance, angle: int64, float32, float32 [K] to fill. Distance is metres to the destination beyond
            the nearest candidate's, in hundreds; angle is the turn between candidate and destination, over pi.
        label: int64 [P] to fill.
        first, length: int64 [P] index in `successors` of the first of each position's road, and how many it has.
        next_road: int32 [P].
        destination: int64 [P].
        towards_destination: float64 [P] bearing, radians.
        successors: int32 [S]; towards_successor: float64 [S] bearing, radians.
        point: float64 [N, 3] as for `fill_pairs`, of each road.
    """
    end = 0
    for position in range(len(first)):
        start, end = end, end + length[position]
        there = point[destination[position]]
        nearest = np.float32(np.inf)
        for i in range(start, end):
            at = first[position] + i - start
            candidate = successors[at]
            road[i] = candidate
            metres = np.float32(_metres(point[candidate], there))  # float32 before the difference, as upstream
            distance[i] = metres
            nearest = min(nearest, metres)
            turn = abs(towards_successor[at] - towards_destination[position])
            angle[i] = min(turn, 2 * math.pi - turn) / math.pi
            if candidate == next_road[position]:
                label[position] = i - start
        for i in range(start, end):
            distance[i] = (distance[i] - nearest) / np.float32(100)
