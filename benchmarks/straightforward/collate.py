"""Batches as they are commonly made: trip after trip, step after step, candidate after candidate; then padded.

Plain Python and `math`; arrays only to hold the result. The pairwise matrices of a trip are the heavy part, so there is
a second way that leaves these to numpy, a trip at a time.

Shapes: B trips, T longest trip in steps, C most candidates of a step.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.common import BenchmarkError
from shared.store import Trips
from student_trainer.data.batch import IGNORED_LABEL, Batch
from student_trainer.data.network import RoadNetwork

EARTH_RADIUS_M = 6_371_008.8
FLOAT32 = 2.0**-23
TOLERANCE = {
    "temporal": FLOAT32,
    "distance": FLOAT32,
    "interval": 1440 * FLOAT32 / 5,  # times of day are rounded, and minutes are 1440 times as much
    "candidate_angle": FLOAT32,
    "candidate_distance": 2**14 * FLOAT32 / 100,  # of the difference of two distances of up to 2^15 metres
}
"""Greatest difference from our batches."""

Array = npt.NDArray[np.float32]
Point = Sequence[float]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Of a step: roads, distances and angles of its candidates, and which is the next road."""

    road: list[int]
    distance: list[float]
    angle: list[float]
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Of a trip of T steps."""

    road: list[int]
    temporal: list[float]
    distance: Array
    interval: Array
    destination: int
    candidates: list[Candidates]
    seconds: list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedBatch:
    """A batch as the common model reads it: zeros beyond a trip's steps and a step's candidates.

    Attributes:
        length, destination: int64 [B].
        road: int64 [B, T]; temporal, seconds: float32 [B, T]; label: int64 [B, T].
        distance, interval: float32 [B, T, T].
        candidate_length: int64 [B, T].
        candidate_road, candidate_token: int64 [B, T, C]; candidate_distance, candidate_angle: float32 [B, T, C].
    """

    length: npt.NDArray[np.int64]
    destination: npt.NDArray[np.int64]
    road: npt.NDArray[np.int64]
    temporal: Array
    seconds: Array
    label: npt.NDArray[np.int64]
    distance: Array
    interval: Array
    candidate_length: npt.NDArray[np.int64]
    candidate_road: npt.NDArray[np.int64]
    candidate_token: npt.NDArray[np.int64]
    candidate_distance: Array
    candidate_angle: Array


Matrices = Callable[[Sequence[Point], Sequence[float]], tuple[Array, Array]]
"""Centroids (degrees) and times of day of a trip's steps -> its distances and intervals, float32 [T, T]."""


def build_padded(
    network: RoadNetwork, trips: Trips, index: npt.NDArray[np.int64], matrices: Matrices, top_k: int = 0
) -> PaddedBatch:
    """The batch of the given trips; arguments as `build_batch` has them, and how matrices are made."""
    features = [_trip_features(network, trips, int(trip), matrices, top_k) for trip in index]
    return _pad(network, features)


def matrices_by_pair(points: Sequence[Point], temporal: Sequence[float]) -> tuple[Array, Array]:
    """One pair of steps after another."""
    steps = len(points)
    distance, interval = np.zeros((steps, steps), np.float32), np.zeros((steps, steps), np.float32)
    minutes = [float(np.float32(time) * np.float32(1440)) for time in temporal]
    for i in range(steps):
        for j in range(steps):
            distance[i, j] = min(_metres(points[i], points[j]), 1000) / 1000
            interval[i, j] = min(abs(minutes[i] - minutes[j]), 5) / 5
    return distance, interval


def matrices_by_trip(points: Sequence[Point], temporal: Sequence[float]) -> tuple[Array, Array]:
    """All pairs of a trip in array operations."""
    phi, lamda = np.radians(np.array(points)).T
    half_dphi, half_dlambda = (phi[:, None] - phi) / 2, (lamda[:, None] - lamda) / 2
    a = np.sin(half_dphi) ** 2 + np.cos(phi[:, None]) * np.cos(phi) * np.sin(half_dlambda) ** 2
    metres = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(a))
    minutes = np.array(temporal, np.float32) * np.float32(1440)
    interval = np.clip(np.abs(minutes[:, None] - minutes), 0, 5) / 5
    return (np.clip(metres, 0, 1000) / 1000).astype(np.float32), interval.astype(np.float32)


def _trip_features(network: RoadNetwork, trips: Trips, trip: int, matrices: Matrices, top_k: int) -> Features:
    part = slice(trips.offsets[trip], trips.offsets[trip + 1])
    roads, times = trips.roads[part].tolist(), trips.times[part].tolist()
    temporal = times_of_day(times[:-1])
    points = [network.line_centroid[road].tolist() for road in roads[:-1]]
    distance, interval = matrices(points, temporal)
    candidates = [
        candidates_of(network, road, next_road, roads[-1], top_k) for road, next_road in itertools.pairwise(roads)
    ]
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return Features(roads[:-1], temporal, distance, interval, roads[-1], candidates, seconds)


def times_of_day(times: Sequence[int]) -> list[float]:
    """Time of day of each step of a trip that enters its roads at these seconds."""
    clock = [datetime.datetime.fromtimestamp(time, datetime.UTC) for time in times]
    sign = -1 if clock[0].weekday() >= 5 else 1
    return [sign * (c.hour * 60 + c.minute + c.second / 60) / 1440 for c in clock]


def candidates_of(network: RoadNetwork, road: int, next_road: int, destination: int, top_k: int) -> Candidates:
    """The candidates of a step on `road`; arguments as `build_batch` has them."""
    roads = network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]].tolist()
    there = network.line_centroid[destination].tolist()
    metres = [_metres(network.line_centroid[candidate].tolist(), there) for candidate in roads]
    distance = [math.log1p((m - min(metres)) / 100) for m in metres]
    here = network.end_vertex[road].tolist()
    ahead = _bearing(here, network.end_vertex[destination].tolist())
    angle = [_turn(_bearing(here, network.end_vertex[candidate].tolist()), ahead) / math.pi for candidate in roads]
    kept = sorted(sorted(range(len(roads)), key=lambda i: distance[i])[: top_k or None])
    true = roads.index(next_road)
    label = kept.index(true) if true in kept else IGNORED_LABEL
    return Candidates([roads[i] for i in kept], [distance[i] for i in kept], [angle[i] for i in kept], label)


def _metres(a: Point, b: Point) -> float:
    """Haversine formula on latitudes and longitudes in degrees."""
    phi1, lambda1, phi2, lambda2 = math.radians(a[0]), math.radians(a[1]), math.radians(b[0]), math.radians(b[1])
    term = math.sin((phi2 - phi1) / 2) ** 2
    term += math.cos(phi1) * math.cos(phi2) * math.sin((lambda2 - lambda1) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(term))


def _bearing(a: Point, b: Point) -> float:
    """Direction between two points given as latitude and longitude; upstream swaps the two, and so its weights."""
    angle = math.atan2(b[1] - a[1], math.cos(math.radians(a[1])) * (b[0] - a[0]))
    return angle + 2 * math.pi if angle < 0 else angle


def _turn(a: float, b: float) -> float:
    difference = abs(a - b)
    return 2 * math.pi - difference if difference > math.pi else difference


def _pad(network: RoadNetwork, trips: Sequence[Features]) -> PaddedBatch:
    width = max(len(trip.road) for trip in trips)
    most = max(len(step.road) for trip in trips for step in trip.candidates)
    shape = (len(trips), width)
    batch = PaddedBatch(
        length=np.array([len(trip.road) for trip in trips], np.int64),
        destination=np.array([trip.destination for trip in trips], np.int64),
        road=np.zeros(shape, np.int64),
        temporal=np.zeros(shape, np.float32),
        seconds=np.zeros(shape, np.float32),
        label=np.full(shape, IGNORED_LABEL, np.int64),
        distance=np.zeros((*shape, width), np.float32),
        interval=np.zeros((*shape, width), np.float32),
        candidate_length=np.zeros(shape, np.int64),
        candidate_road=np.zeros((*shape, most), np.int64),
        candidate_token=np.zeros((*shape, most), np.int64),
        candidate_distance=np.zeros((*shape, most), np.float32),
        candidate_angle=np.zeros((*shape, most), np.float32),
    )
    for row, trip in enumerate(trips):
        steps = len(trip.road)
        batch.road[row, :steps], batch.temporal[row, :steps] = trip.road, trip.temporal
        batch.seconds[row, :steps] = trip.seconds
        batch.distance[row, :steps, :steps], batch.interval[row, :steps, :steps] = trip.distance, trip.interval
        for step, candidates in enumerate(trip.candidates):
            count = len(candidates.road)
            batch.candidate_length[row, step], batch.label[row, step] = count, candidates.label
            batch.candidate_road[row, step, :count] = candidates.road
            batch.candidate_token[row, step, :count] = network.road_token[candidates.road]
            batch.candidate_distance[row, step, :count] = candidates.distance
            batch.candidate_angle[row, step, :count] = candidates.angle
    return batch


def check_equal(padded: PaddedBatch, batch: Batch) -> None:
    """Raises `BenchmarkError` unless the batch is the padded one: integers exactly, the rest within float32's rounding.

    Of the pairs of steps those count that a trip encoder reads: a step and itself or one before it.
    """
    inside = np.arange(padded.road.shape[1]) < padded.length[:, None]
    exists = np.arange(padded.candidate_road.shape[2]) < padded.candidate_length[..., None]
    exact = {name: getattr(padded, name) for name in ("length", "destination", "road")}
    exact |= {name: getattr(padded, name)[inside] for name in ("label", "seconds", "candidate_length")}
    exact |= {name: getattr(padded, name)[exists] for name in ("candidate_road", "candidate_token")}
    close = {"temporal": padded.temporal, "distance": np.tril(padded.distance), "interval": np.tril(padded.interval)}
    close |= {name: getattr(padded, name)[exists] for name in ("candidate_distance", "candidate_angle")}
    for name, expected in exact.items():
        if not np.array_equal(getattr(batch, name).numpy(), expected):
            raise BenchmarkError(f"{name} differs from what the formulas give")
    for name, expected in close.items():
        actual, most = getattr(batch, name).numpy(), TOLERANCE[name]
        if actual.shape != expected.shape or (worst := np.abs(actual - expected).max(initial=0)) > most:
            raise BenchmarkError(f"{name} differs by {worst:.2g} from what the formulas give, more than {most:.2g}")
