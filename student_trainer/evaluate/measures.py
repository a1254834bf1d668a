"""What is measured of each trip and of each pair of trips.

Shapes: n pairs of a real and a generated trip. Points are the centroids of roads.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Bool, Float64, Int64
from shared.store import Trips
from student_trainer.data import geometry
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import kernels

EDR_TOLERANCE_KM = 0.1
CELL_DEGREES = 0.001
"""Side of the cells that make an OD pair coarser, degrees, as upstream's evaluation has it."""


@dataclasses.dataclass(frozen=True, eq=False)
class TripMeasures:
    """Of n trips.

    Attributes:
        distance_km: great circles between consecutive points, summed.
        radius_km: mean great circle from the points to their arithmetic mean point (upstream's radius of gyration).
        radius_rms_km: root of the mean square of the same (the textbook's).
        duration_s: from the first road to the last.
        segment_s: seconds from each road to the next, trips back to back, [sum of (lengths - 1)].
        segment_offsets: int64 [n + 1].
    """

    distance_km: Float64
    radius_km: Float64
    radius_rms_km: Float64
    duration_s: Float64
    segment_s: Float64
    segment_offsets: Int64


def measure_trips(network: RoadNetwork, trips: Trips) -> TripMeasures:
    """Distance, radius and times of each trip."""
    points = network.line_centroid[trips.roads]
    lengths, starts = trips.lengths, trips.offsets[:-1]
    mean = np.add.reduceat(points, starts, axis=0) / lengths[:, None]
    middle = np.repeat(mean, lengths, axis=0)
    spread_km = geometry.haversine_m(points[:, 0], points[:, 1], middle[:, 0], middle[:, 1]) / 1000
    steps = np.diff(trips.times, append=0).astype(np.float64)
    is_step = np.ones(len(steps), bool)
    is_step[trips.offsets[1:] - 1] = False
    return TripMeasures(
        distance_km=kernels.path_lengths_km(kernels.unit_vectors(points), trips.offsets),
        radius_km=np.add.reduceat(spread_km, starts) / lengths,
        radius_rms_km=np.sqrt(np.add.reduceat(spread_km**2, starts) / lengths),
        duration_s=(trips.times[trips.offsets[1:] - 1] - trips.times[starts]).astype(np.float64),
        segment_s=steps[is_step],
        segment_offsets=ragged.offsets(lengths - 1),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PairMeasures:
    """Of n pairs: how far the generated trip is from its real counterpart. float64 [n] each; see `kernels`."""

    hausdorff_km: Float64
    dtw_km: Float64
    dtw_per_point_km: Float64
    edr: Float64


def measure_pairs(network: RoadNetwork, real: Trips, generated: Trips) -> PairMeasures:
    """Local distances of the k-th generated to the k-th real trip, for all k.

    `dtw_per_point_km` is DTW divided by the mean number of roads of the two.
    """
    vectors = kernels.unit_vectors(network.line_centroid)
    hausdorff, dtw, edr = kernels.local_distances(
        vectors[real.roads], real.offsets, vectors[generated.roads], generated.offsets, EDR_TOLERANCE_KM
    )
    return PairMeasures(hausdorff, dtw, dtw / ((real.lengths + generated.lengths) / 2), edr)


def same_routes(real: Trips, generated: Trips) -> Bool:
    """Whether the k-th trips of both visit the same roads in the same order, [n]."""
    same: Bool = np.asarray(real.lengths == generated.lengths)
    left = ragged.slices(real.offsets[:-1][same], real.lengths[same])
    right = ragged.slices(generated.offsets[:-1][same], generated.lengths[same])
    differs = real.roads[left] != generated.roads[right]
    result = same.copy()
    lengths = real.lengths[same]
    if len(lengths):
        result[same] = ~np.logical_or.reduceat(differs, ragged.offsets(lengths)[:-1])
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Square cells over the centroids of a network, for upstream's OD pairs.

    Attributes:
        of_road: int64 [N] cell of each road.
    """

    of_road: Int64

    @classmethod
    def over(cls, network: RoadNetwork) -> Cells:
        """Cells of `CELL_DEGREES` from the least latitude and longitude."""
        low, high = network.line_centroid.min(axis=0), network.line_centroid.max(axis=0)
        count = np.maximum(np.ceil((high - low) / CELL_DEGREES).astype(np.int64), 1)
        place = np.minimum(((network.line_centroid - low) / CELL_DEGREES).astype(np.int64), count - 1)
        return cls(place[:, 1] * count[0] + place[:, 0])

    def ends(self, trips: Trips) -> Int64:
        """Cells of the first and the last road of each trip, [n, 2]."""
        return np.stack(
            [self.of_road[trips.roads[trips.offsets[:-1]]], self.of_road[trips.roads[trips.offsets[1:] - 1]]], 1
        )


def shared_cell_pairs(real_ends: Int64, generated_ends: Int64) -> tuple[Int64, Int64]:
    """Upstream's matching: of trips with the same cells at both ends, the k-th real one with the k-th generated one.

    Args:
        real_ends, generated_ends: [m, 2], [n, 2] cells of the first and last road; trips are in file order.

    Returns:
        Indices of the real and of the generated trips, matched, both int64 [min counts, summed].
    """
    both = np.concatenate([real_ends, generated_ends])
    _, key = np.unique(both, axis=0, return_inverse=True)
    key = key.reshape(-1)
    occurrence = _occurrences(key[: len(real_ends)]), _occurrences(key[len(real_ends) :])
    scale = max(len(both), 1)
    left, right = key[: len(real_ends)] * scale + occurrence[0], key[len(real_ends) :] * scale + occurrence[1]
    _, in_real, in_generated = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return in_real.astype(np.int64), in_generated.astype(np.int64)


def _occurrences(key: Int64) -> Int64:
    """How often each value has occurred before, as in 0 0 1 0 2 for a b a c a."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]] if len(key) else np.zeros(0, bool)
    start = np.maximum.accumulate(np.where(first, np.arange(len(key)), 0)) if len(key) else np.zeros(0, np.int64)
    result = np.empty(len(key), np.int64)
    result[order] = np.arange(len(key)) - start
    return result
