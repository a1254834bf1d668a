"""Roads of a GeoJSON file: of osmnx, QGIS, ogr2ogr, SUMO, a map matcher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import DataError
from student_trainer.convert.config import NetworkConfig
from student_trainer.convert.network import OPPOSITE, Line, Road, measured
from student_trainer.prepare import csv_faults, road_classes

UNKNOWN = "unclassified"
"""The class of a road that names none."""
WGS84 = ("4326", "CRS84")
FORWARD, BACKWARD = ("true", "yes", "1"), ("-1", "reverse")
"""What `oneway` says of a line that is driven one way only."""
NAMED = 30
"""Properties of a feature that are named."""

Fail = Callable[[str], NoReturn]
"""Refuses a feature, for a reason."""


def read(path: Path, config: NetworkConfig) -> tuple[list[Road], list[str]]:
    """The roads, in the order of the file, and sentences about what is odd.

    Raises:
        DataError: naming the file and the feature.
    """
    try:
        csv_faults.check_unpacked(path)
        document = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as GeoJSON: {error}") from None
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        raise DataError(f"{path} is no GeoJSON FeatureCollection: it has no list of features")
    _check_system(path, document)
    roads = [road for number, feature in enumerate(features) for road in _roads(path, number, feature, config)]
    return roads, _findings(path, [_properties(feature) for feature in features], config)


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
    properties = _properties(feature)
    name, line = _name(feature, properties, config), _line(feature["geometry"], fail)
    if name is None:
        wanted = "name what the trips call a road, as in network.id=u,v,key"
        fail(f"has no {', '.join(config.id)}; {wanted}; it {_has(properties)}")
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


def _properties(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _findings(path: Path, features: Sequence[Mapping[str, Any]], config: NetworkConfig) -> list[str]:
    """Sentences about properties that no feature has.

    Args:
        path: the file.
        features: the properties of each.
        config: how they are called.
    """
    wanted = [("network.highway", config.highway, f"every road is {UNKNOWN}; name the property with the class")]
    if config.directions == "oneway":
        wanted.append(("network.directions=oneway", "oneway", "every feature is two roads; rename what says it"))
    if "length" in config.model_fields_set:  # by default it need not be there
        wanted.append(("network.length", config.length, "every line is measured; name the property with metres"))
    return [
        f"{path.name}: no feature has a value of the property {name!r} ({setting}), so {follows}. "
        f"The first feature {_has(features[0])}"
        for setting, name, follows in wanted
        if features and all(_is_empty(properties.get(name)) for properties in features)
    ]


def _has(properties: Mapping[str, Any]) -> str:
    """What a feature has, as it goes on after "it"."""
    names = [name for name in properties if not _is_empty(properties[name])]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"has {', '.join(map(repr, names[:NAMED]))}{more}" if names else "has no property with a value"


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [])


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
    if _is_empty(value):
        return UNKNOWN
    try:
        return road_classes.class_of(json.dumps(value) if isinstance(value, list) else str(value))
    except ValueError as error:
        fail(str(error))
