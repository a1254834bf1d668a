"""Geometry and topology of the road network, derived from raw roads; pure functions."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Float32, Float64, Int32, Int64
from student_trainer.data import geometry
from student_trainer.prepare.raw import Roads


@dataclasses.dataclass(frozen=True, eq=False)
class Successors:
    """The roads that can follow each road. S transitions: a road, and one that can follow it.

    Attributes:
        offsets: int64 [N + 1] first transition from each road.
        roads: int32 [S] where each transition leads, in the order of `roadmap.rel`.
    """

    offsets: Int64
    roads: Int32

    @classmethod
    def from_pairs(cls, origin: Int64, destination: Int64, num_roads: int) -> Successors:
        """Groups pairs by origin in the order given; of repeated pairs the first stays."""
        _, first = np.unique(origin * num_roads + destination, return_index=True)
        first.sort()
        origin, destination = origin[first], destination[first]
        order = np.argsort(origin, kind="stable")
        degree = np.bincount(origin, minlength=num_roads)
        return cls(ragged.offsets(degree), destination[order].astype(np.int32))

    @property
    def degree(self) -> Int64:
        """Successors of each road, int64 [N]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def origin(self) -> Int64:
        """The road that each transition starts from, int64 [S]."""
        return ragged.rows(self.degree)

    @functools.cached_property
    def _index(self) -> tuple[Int64, Int64]:
        pairs = self._pair(self.origin, self.roads)
        order = np.argsort(pairs)
        return pairs[order], order

    def transitions(self, origin: npt.NDArray[np.integer], destination: npt.NDArray[np.integer]) -> Int64:
        """The transition from each origin to each destination, int64; -1 where the destination is not a successor."""
        pairs, order = self._index
        if not len(pairs):
            return np.full(len(origin), -1, np.int64)
        wanted = self._pair(origin, destination)
        found = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        return np.where(pairs[found] == wanted, order[found], -1)

    def _pair(self, origin: npt.NDArray[np.integer], destination: npt.NDArray[np.integer]) -> Int64:
        return origin.astype(np.int64) * (len(self.offsets) - 1) + destination


def line_centroids(roads: Roads) -> Float64:
    """Length-weighted mean of the segments' midpoints, in degrees: float64 [N, 2].

    The planar centroid of a line, as Shapely's `LineString.centroid`; a line of no length
    is its first vertex.
    """
    offsets = roads.vertex_offsets
    first = np.delete(np.arange(offsets[-1]), offsets[1:] - 1)  # all vertices but each road's last
    segment_offsets = offsets[:-1] - np.arange(len(roads))
    start, end = roads.vertices[first], roads.vertices[first + 1]
    length = np.hypot(*(end - start).T)
    total = np.add.reduceat(length, segment_offsets)
    weighted = np.add.reduceat(length[:, None] * (start + end) / 2, segment_offsets)
    has_length = total > 0
    centroids = roads.vertices[offsets[:-1]].copy()
    centroids[has_length] = weighted[has_length] / total[has_length, None]
    return centroids


def vertex_means(roads: Roads) -> Float64:
    """Plain mean of each road's vertices, degrees: float64 [N, 2]."""
    total = np.add.reduceat(roads.vertices, roads.vertex_offsets[:-1])
    return np.asarray(total / np.diff(roads.vertex_offsets)[:, None])


def end_vertices(roads: Roads) -> Float64:
    """Last vertex of each road, degrees: float64 [N, 2]."""
    return roads.vertices[roads.vertex_offsets[1:] - 1]


def road_graph(roads: Roads) -> Int64:
    """Ordered pairs of different roads that share an end point: int64 [2, E].

    Sorted by the first road, then the second. Which points are the same `points` decides.
    """
    n = len(roads)
    road = np.tile(np.arange(n), 2)
    point, road = np.unique(np.stack([np.concatenate([roads.start_point, roads.end_point]), road]), axis=1)
    degree = np.bincount(point)
    meeting = degree[point]
    other = road[ragged.slices(ragged.offsets(degree)[point], meeting)]
    pairs = np.unique(np.repeat(road, meeting) * n + other)
    source, target = np.divmod(pairs, n)
    return np.stack([source, target])[:, source != target]


def intersection_attributes(roads: Roads, successors: Successors, edges: Int64) -> Float32:
    """What lies between the two roads of each edge: float32 [E, 2].

    Column 0: unsigned difference of their start-to-end bearings over pi; column 1: 1 if the
    second road is a successor of the first.
    """
    start, end = roads.vertices[roads.vertex_offsets[:-1]], end_vertices(roads)
    bearing = geometry.bearing(start[:, 0], start[:, 1], end[:, 0], end[:, 1])
    angle = geometry.turn(bearing[edges[0]], bearing[edges[1]]) / np.pi
    return np.stack([angle, successors.transitions(edges[0], edges[1]) >= 0], axis=1).astype(np.float32)
