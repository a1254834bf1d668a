"""The road network as the student reads it: successors, points, zones, tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from shared.store import Store


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

    successor_offsets: npt.NDArray[np.int64]
    successors: npt.NDArray[np.int32]
    line_centroid: npt.NDArray[np.float64]
    end_vertex: npt.NDArray[np.float64]
    road_token: npt.NDArray[np.int32]
    road_zone: npt.NDArray[np.int64]
    attr_len: npt.NDArray[np.float32]
    attr_type: npt.NDArray[np.int64]
    attr_lon: npt.NDArray[np.float32]
    attr_lat: npt.NDArray[np.float32]
    road_edge_index: npt.NDArray[np.int64]
    intersection_attr: npt.NDArray[np.float32]
    zone_edge_index: npt.NDArray[np.int64]
    zone_edge_weight: npt.NDArray[np.float32]

    @classmethod
    def load(cls, store: Store) -> RoadNetwork:
        """Reads the network of a store."""
        return cls(**{field.name: store.network(field.name) for field in dataclasses.fields(cls)})

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
