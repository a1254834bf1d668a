"""Trips as GeoJSON (RFC 7946): WGS 84, longitude before latitude."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shared import files
from shared.store import Store, Trips

DIGITS = 6
"""Decimals of a degree: a tenth of a metre."""


class Roads:
    """The polylines of all roads."""

    def __init__(self, store: Store) -> None:
        self.vertices: npt.NDArray[np.float64] = store.network("vertices")
        self.offsets: npt.NDArray[np.int64] = store.network("vertex_offsets")

    def path(self, roads: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """Longitudes and latitudes [V, 2] along consecutive roads, points that follow themselves left out."""
        parts = [self.vertices[self.offsets[road] : self.offsets[road + 1], ::-1] for road in roads]
        points = np.round(np.concatenate(parts), DIGITS)
        keep = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))
        return np.asarray(points[keep])


def feature(roads: Roads, ids: npt.NDArray[np.int32], properties: dict[str, Any]) -> dict[str, Any]:
    """A trip along roads; where it has no length, a point."""
    points = roads.path(ids).tolist()
    if len(points) > 1:
        geometry: dict[str, Any] = {"type": "LineString", "coordinates": points}
    else:
        geometry = {"type": "Point", "coordinates": points[0]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(
    store: Store, trips: Trips, pairs: npt.NDArray[np.int64], properties: dict[str, npt.NDArray]
) -> dict[str, Any]:
    """Trips as a FeatureCollection; the k-th is that of the k-th pair.

    Args:
        properties: what else is known of each trip, [n] by name.
    """
    roads = Roads(store)
    features = []
    for k, pair in enumerate(pairs.tolist()):
        span = slice(int(trips.offsets[k]), int(trips.offsets[k + 1]))
        known = {name: _plain(values[k]) for name, values in properties.items()}
        own = {"pair": pair, **known, "roads": trips.roads[span].tolist(), "times": trips.times[span].tolist()}
        features.append(feature(roads, trips.roads[span], own))
    return {"type": "FeatureCollection", "features": features}


def _plain(value: Any) -> Any:
    return files.finite(value.item() if isinstance(value, np.generic) else value)
