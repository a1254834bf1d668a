"""The road network as the student reads it: successors, points, zones, tokens."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Float32, Float64, Int32, Int64
from shared.store import Store
from student_trainer.data import geometry


@dataclasses.dataclass(frozen=True, eq=False)
class RoadNetwork:
    """Arrays of N directed roads, E road-graph edges and Z zones; see `student_trainer.prepare`.

    Attributes:
        successor_offsets: int64 [N+1] into `successors`.
        successors: int32 [S], the candidates of each road in `roadmap.rel` order.
        line_centroid, end_vertex: float64 [N, 2] latitude and longitude, degrees.
        road_token: int32 [N], the teacher's token of each road.
        road_zone: int64 [N].
        attr_len, attr_lon, attr_lat: float32 [N], z-scores; attr_type: int64 [N].
        road_edge_index: int64 [2, E], source and target; intersection_attr: float32 [E, 2].
        zone_edge_index: int64 [2, EZ]; zone_edge_weight: float32 [EZ].
    """

    successor_offsets: Int64
    successors: Int32
    line_centroid: Float64
    end_vertex: Float64
    road_token: Int32
    road_zone: Int64
    attr_len: Float32
    attr_type: Int64
    attr_lon: Float32
    attr_lat: Float32
    road_edge_index: Int64
    intersection_attr: Float32
    zone_edge_index: Int64
    zone_edge_weight: Float32

    @classmethod
    def load(cls, store: Store) -> RoadNetwork:
        """Reads the network of a store."""
        return cls(**{field.name: store.network(field.name) for field in dataclasses.fields(cls)})

    @functools.cached_property
    def centroid_on_sphere(self) -> Float64:
        """Latitude and longitude of each centroid in radians, and the cosine of the latitude: float64 [N, 3]."""
        phi, lamda = np.radians(self.line_centroid).T
        return np.stack([phi, lamda, np.cos(phi)], axis=1)

    @functools.cached_property
    def successor_bearing(self) -> Float64:
        """`end_bearing` from each road to each of its successors: float64 [S]."""
        return self.end_bearing(ragged.rows(np.diff(self.successor_offsets)), self.successors)

    def end_bearing(self, road: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> Float64:
        """Direction from the end of each road to the end of another, radians in [0, 2 pi).

        Longitude and latitude are swapped in the call, as they are in upstream's training
        and inference: weights depend on it.
        """
        lat, lng = self.end_vertex[:, 0], self.end_vertex[:, 1]
        return geometry.bearing(lng[road], lat[road], lng[other], lat[other])

    @property
    def num_roads(self) -> int:
        """N."""
        return len(self.road_zone)

    @property
    def num_zones(self) -> int:
        """Z: one more than the highest zone."""
        return int(self.road_zone.max()) + 1

    @property
    def num_types(self) -> int:
        """Number of road classes."""
        return int(self.attr_type.max()) + 1
