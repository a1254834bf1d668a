"""`student-trainer convert`: a network and trips of other formats -> a directory that `prepare` reads.

OUT/roadmap.geo, roadmap.rel, train.csv, val.csv, test.csv    HOSER's format; `source_id` is what trips called a road
OUT/converted.json    settings, and what was dropped
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import claims, cli, files
from shared.arrays import Int64
from shared.errors import ConfigError, DataError
from shared.store import SPLITS, Trips
from student_trainer.convert import geojson, network, osm, trips
from student_trainer.convert.config import ConvertConfig, SplitConfig
from student_trainer.convert.network import Road
from student_trainer.convert.trips import Found
from student_trainer.prepare import plausible, raw
from student_trainer.prepare.clock import Clock
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import usable

log = logging.getLogger(__name__)

MARKER = "converted.json"
"""Says that a directory was written here, and may be replaced."""
GEOJSON, OSM = (".geojson", ".json"), (".osm", ".pbf", ".osm.gz", ".osm.bz2", ".osm.xml")
DECIMALS = 7
"""Of coordinates: a centimetre, and what OpenStreetMap has."""


def run(config: ConvertConfig) -> int:
    """Writes the directory; prints what `prepare` would warn of on stderr and a summary as JSON on stdout.

    Raises:
        DataError: an input is missing or malformed, or nothing usable is left.
        ConfigError: `out` holds something else, another job writes there, or the network is of no known format.
    """
    with claims.directory(config.out):
        claims.check(config.out, "a converted city", lambda out: (out / MARKER).is_file())
        summary, findings = _convert(config)
    for sentence in findings:
        print(f"warning: {sentence}", file=sys.stderr)
    print(json.dumps({"out": str(config.out), **summary}))
    log.info("next: %s", cli.command("student-trainer", "prepare", "--raw", str(config.out), "--out", "runs/store"))
    return 0


def _convert(config: ConvertConfig) -> tuple[dict[str, Any], list[str]]:
    """What was written, and what is odd."""
    roads = read_roads(config)
    numbers = network.numbers(config.roads, roads)
    pairs = list(network.successors(roads, config.network.u_turns))
    if not pairs:
        raise DataError(f"{config.roads}: no road begins where another ends; are their end points not the same?")
    found = trips.read(config.trips, config.columns, numbers)
    origin, destination = np.array(pairs, np.int64).T
    kept, dropped = usable(found.trips, Successors.from_pairs(origin, destination, len(roads)), strict=False)
    dropped = {"unknown_road": found.unknown, **dropped}
    _check_kept(config, found, len(kept), dropped)
    parts = {name: kept.take(index) for name, index in split(kept, config.split).items()}
    summary = {
        "roads": len(roads),
        "successor_pairs": len(pairs),
        "trips": {name: len(part) for name, part in parts.items()},
        "dropped": dropped,
        "repeated_rows": found.repeated,
    }
    with files.atomic_directory(config.out) as folder:
        _write_network(folder, roads, pairs)
        for name, part in parts.items():
            _write_trips(folder / f"{name}.csv", part)
        settings = config.model_dump(mode="json", exclude={"out"})
        files.write_json(folder / MARKER, {"settings": settings, "summary": summary})
        odd = plausible.findings(raw.read_roads(folder / "roadmap.geo"), origin, destination)
    for name, part in parts.items():
        odd += Clock.of(part).facts(name)["findings"]
    if found.unknown:
        odd.append(
            f"{config.trips.name}: {found.unknown} of {found.trips_in_file} trips name roads that the network has not, "
            f"as {found.example!r}; its roads are called as {roads[0].name!r}"
        )
    if sum(dropped.values()) > found.trips_in_file // 10:
        odd.append(f"{config.trips.name}: of {found.trips_in_file} trips dropped: {dropped}. {_why(dropped)}")
    return summary, odd


def read_roads(config: ConvertConfig) -> list[Road]:
    """The roads of the network's file, by the format that its name says.

    Raises:
        DataError: it is malformed.
        ConfigError: its name says no format that is known.
    """
    name = config.roads.name.lower()
    if name.endswith(GEOJSON):
        return geojson.read(config.roads, config.network)
    if name.endswith(OSM):
        return osm.read(config.roads, config.network)
    raise ConfigError(
        f"{config.roads} is neither GeoJSON ({', '.join(GEOJSON)}) nor OpenStreetMap data ({', '.join(OSM)}); "
        "convert other formats: ogr2ogr -t_srs EPSG:4326 roads.geojson FILE"
    )


def split(kept: Trips, config: SplitConfig) -> dict[str, Int64]:
    """Indices of the trips of each split, ascending; at least one each.

    Args:
        kept: three or more trips.
        config: shares and order.
    """
    n = len(kept)
    sizes = [max(1, round(share * n)) for share in (config.val, config.test)]
    if sum(sizes) >= n:
        sizes = [1, 1]
    order = np.random.default_rng(config.seed).permutation(n)
    if config.by == "time":
        order = np.argsort(kept.times[kept.offsets[:-1]], kind="stable")
    train = n - sum(sizes)
    parts = np.split(order, [train, train + sizes[0]])
    return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}


def _check_kept(config: ConvertConfig, found: Found, kept: int, dropped: dict[str, int]) -> None:
    if kept < len(SPLITS):
        example = f", as {found.example!r}" if found.example else ""
        raise DataError(
            f"{config.trips} has {kept} usable trips, too few for {', '.join(SPLITS)}: of {found.trips_in_file} "
            f"dropped {dropped}{example}. {_why(dropped)}"
        )


def _why(dropped: dict[str, int]) -> str:
    """What the commonest reason for dropping trips comes from."""
    reasons = {
        "unknown_road": "Roads must be called in the trips as in the network: see network.id and network.directions.",
        "off_network": "Trips must name every road that they drive on, in the direction of travel, without gaps: "
        "match points to roads first, and fill gaps there.",
        "too_short": "Trips need two roads or more: see columns.trip.",
        "time_backwards": "Times must not go backwards.",
    }
    return reasons[max(dropped, key=lambda reason: dropped[reason])]


def _write_network(folder: Path, roads: Sequence[Road], pairs: Iterable[tuple[int, int]]) -> None:
    _write_csv(
        folder / "roadmap.geo",
        ("geo_id", "type", "coordinates", "highway", "length", "source_id"),
        (
            (number, "LineString", _coordinates(road), road.highway, f"{road.length:.3f}", road.name)
            for number, road in enumerate(roads)
        ),
    )
    _write_csv(
        folder / "roadmap.rel",
        ("rel_id", "type", "origin_id", "destination_id"),
        ((number, "geo", *pair) for number, pair in enumerate(pairs)),
    )


def _coordinates(road: Road) -> str:
    return "[" + ", ".join(f"[{lng:.{DECIMALS}f}, {lat:.{DECIMALS}f}]" for lng, lat in road.line) + "]"


def _write_trips(path: Path, part: Trips) -> None:
    clock = np.datetime_as_string(part.times.astype("M8[s]"))
    _write_csv(
        path,
        ("traj_id", "rid_list", "time_list"),
        (
            (number, ",".join(map(str, part.roads[a:b])), ",".join(f"{time}Z" for time in clock[a:b]))
            for number, (a, b) in enumerate(zip(part.offsets[:-1], part.offsets[1:], strict=True))
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
