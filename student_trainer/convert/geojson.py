"""Roads of a GeoJSON file: of osmnx, QGIS, ogr2ogr, SUMO, a map matcher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import DataError
from student_trainer.convert.config import NetworkConfig
from student_trainer.convert.network import OPPOSITE, Line, Road, measured
from student_trainer.prepare import road_classes

UNKNOWN = "unclassified"
"""The class of a road that names none."""
WGS84 = ("4326", "CRS84")
FORWARD, BACKWARD = ("true", "yes", "1"), ("-1", "reverse")
"""What `oneway` says of a line that is driven one way only."""

Fail = Callable[[str], NoReturn]
"""Refuses a feature, for a reason."""


def read(path: Path, config: NetworkConfig) -> list[Road]:
    """The roads, in the order of the file.

    Raises:
        DataError: naming the file and the feature.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as GeoJSON: {error}") from None
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        raise DataError(f"{path} is no GeoJSON FeatureCollection: it has no list of features")
    _check_system(path, document)
    return [road for number, feature in enumerate(features) for road in _roads(path, number, feature, config)]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_system(path: Path, document: Mapping[str, Any]) -> None:
    """Older files may name another system of coordinates."""
    system = json.dumps(document.get("crs"))
    if document.get("crs") is not None and not any(name in system for name in WGS84):
        raise DataError(
            f"{path} has coordinates of another system than longitude and latitude ({system[:100]}); "
            f"convert it: ogr2ogr -t_srs EPSG:4326 roads.geojson {path.name}"
        )


def _roads(path: Path, number: int, feature: Any, config: NetworkConfig) -> Iterator[Road]:
    def fail(problem: str) -> NoReturn:
        raise DataError(f"{path}, feature {number}: {problem}")

    if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
        fail("has no geometry")
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    name, line = _name(feature, properties, config), _line(feature["geometry"], fail)
    if name is None:
        fail(f"has no {', '.join(config.id)}; name what the trips call a road, as in network.id=u,v,key")
    length = properties.get(config.length)
    if length is None:
        length = measured(line)
    if isinstance(length, bool) or not isinstance(length, int | float) or not math.isfinite(length) or length < 0:
        fail(f"{config.length} should be metres, not {length!r}")
    road = Road(name, line, _class(properties.get(config.highway), fail), float(length))
    oneway = str(properties.get("oneway", "")).lower()
    if config.directions == "as_given" or oneway not in BACKWARD:
        yield road
    if config.directions == "oneway" and oneway not in FORWARD:
        yield road.reversed(OPPOSITE + name)


def _name(feature: Mapping[str, Any], properties: Mapping[str, Any], config: NetworkConfig) -> str | None:
    values = [properties.get(key) for key in config.id]
    if values == [None] and feature.get("id") is not None:
        values = [feature["id"]]
    return None if None in values else "-".join(_text(value) for value in values)


def _text(value: Any) -> str:
    """As trips write it: 7 for 7.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def _line(geometry: Mapping[str, Any], fail: Fail) -> Line:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "MultiLineString" and isinstance(coordinates, list) and len(coordinates) == 1:
        kind, coordinates = "LineString", coordinates[0]
    if kind != "LineString" or not isinstance(coordinates, list) or len(coordinates) < 2:
        fail(f"is a {kind}; roads are LineStrings of two or more points")
    for point in coordinates:
        numbers = point[:2] if isinstance(point, list) else []
        if len(numbers) < 2 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            fail(f"{point!r} is not a point")
        if abs(numbers[0]) > 180 or abs(numbers[1]) > 90:
            fail(f"{numbers} is not longitude and latitude, degrees; convert the file: ogr2ogr -t_srs EPSG:4326")
    return tuple((float(point[0]), float(point[1])) for point in coordinates)


def _class(value: Any, fail: Fail) -> str:
    if value is None or value == "" or value == []:
        return UNKNOWN
    try:
        return road_classes.class_of(json.dumps(value) if isinstance(value, list) else str(value))
    except ValueError as error:
        fail(str(error))
