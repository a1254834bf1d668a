"""Roads of an OpenStreetMap file: ways, cut where they meet, in the directions in which cars may drive.

A road is called FROM-TO by the ids of the nodes at its ends; of several between the same two the later ones in the file
are FROM-TO-1, FROM-TO-2, as osmnx counts them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import DataError
from student_trainer.convert.config import NetworkConfig
from student_trainer.convert.network import Road, measured

CLOSED = ("no", "private")
FORWARD, BACKWARD, BOTH = ("yes", "true", "1"), ("-1", "reverse"), ("no", "false", "0")
"""Values of `oneway`."""
ONE_WAY_CLASSES = ("motorway", "motorway_link")
"""Without a word about it these are driven one way, as roundabouts are."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way with a class that is wanted: its nodes, and longitude and latitude of each."""

    nodes: Sequence[int]
    places: Sequence[tuple[float, float]]
    tags: Mapping[str, str]


def read(path: Path, config: NetworkConfig) -> list[Road]:
    """The roads, in the order of the file.

    Raises:
        DataError: the file cannot be read, or holds no road.
        ModuleNotFoundError: the extra [convert] is not installed.
    """
    roads = list(roads_of(list(_ways(path, config))))
    if not roads:
        raise DataError(f"{path} holds no road for cars of the classes in network.classes: {', '.join(config.classes)}")
    return roads


def roads_of(ways: Sequence[Way]) -> Iterator[Road]:
    """Ways cut at the nodes that several of them, or one of them twice, share."""
    uses = Counter(node for way in ways for node in way.nodes)
    taken: Counter[tuple[int, int]] = Counter()
    for way in ways:
        forward, backward = _directions(way.tags)
        for first, last in _pieces(way.nodes, uses):
            line, (start, end) = tuple(way.places[first : last + 1]), (way.nodes[first], way.nodes[last])
            length, highway = measured(line), way.tags["highway"]
            if forward:
                yield Road(_name(start, end, taken), line, highway, length)
            if backward:
                yield Road(_name(end, start, taken), line[::-1], highway, length)


def _name(start: int, end: int, taken: Counter[tuple[int, int]]) -> str:
    number = taken[start, end]
    taken[start, end] += 1
    return f"{start}-{end}" + (f"-{number}" if number else "")


def _pieces(nodes: Sequence[int], uses: Counter[int]) -> Iterator[tuple[int, int]]:
    """First and last place of each piece of a way."""
    first = 0
    for place in range(1, len(nodes)):
        if uses[nodes[place]] > 1 or place == len(nodes) - 1:
            yield first, place
            first = place


def _directions(tags: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether cars may drive along the way, and against it."""
    oneway = tags.get("oneway", "")
    if oneway in BACKWARD:
        return False, True
    implied = tags.get("junction") in ("roundabout", "circular") or tags["highway"] in ONE_WAY_CLASSES
    return True, not (oneway in FORWARD or (implied and oneway not in BOTH))


def _is_wanted(tags: Mapping[str, str], config: NetworkConfig) -> bool:
    open_to_cars = tags.get("motor_vehicle", tags.get("vehicle", tags.get("access", "yes"))) not in CLOSED
    return tags.get("highway") in config.classes and open_to_cars and tags.get("area") != "yes"


def _ways(path: Path, config: NetworkConfig) -> Iterator[Way]:
    """The ways whose classes are wanted; where a node is not in the file, as at the edge of an extract, it is cut."""
    import osmium  # of the extra [convert]

    try:
        for entity in osmium.FileProcessor(str(path)).with_locations():
            if not entity.is_way():
                continue
            tags = {tag.k: tag.v for tag in entity.tags}
            if not _is_wanted(tags, config):
                continue
            nodes: list[int] = []
            places: list[tuple[float, float]] = []
            for node in [*entity.nodes, None]:
                if node is not None and node.location.valid():
                    nodes.append(node.ref)
                    places.append((node.location.lon, node.location.lat))
                else:
                    if len(nodes) > 1:
                        yield Way(nodes, places, tags)
                    nodes, places = [], []
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read as OpenStreetMap data: {error}") from None
