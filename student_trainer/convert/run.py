"""`student-trainer convert`: a network and trips of other formats -> a directory that `prepare` reads.

OUT/roadmap.geo, roadmap.rel, train.csv, val.csv, test.csv    HOSER's format; `source_id` is what trips called a road
OUT/converted.json    settings, and what was dropped
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
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
from student_trainer.prepare import csv_faults, leaks, plausible, raw
from student_trainer.prepare.clock import Clock
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import usable
from student_trainer.prepare.words import counted, form, reasons

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
    store = config.out.parent / "store"
    log.info("next: %s", cli.command("student-trainer", "prepare", "--raw", str(config.out), "--out", str(store)))
    return 0


def _convert(config: ConvertConfig) -> tuple[dict[str, Any], list[str]]:
    """What was written, and what is odd."""
    roads, odd = read_roads(config)
    numbers = network.numbers(config.roads, roads)
    pairs = _successors(config, roads)
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
        odd += plausible.findings(raw.read_roads(folder / "roadmap.geo"), origin, destination)
    return summary, [*odd, *_odd_trips(parts), *_lost_trips(config, found, dropped, roads[0].name)]


def _successors(config: ConvertConfig, roads: Sequence[Road]) -> list[tuple[int, int]]:
    """Roads and those that may follow them; raises `DataError` if there are none."""
    pairs = list(network.successors(roads, config.network.u_turns))
    if not pairs:
        why = "are their end points not the same"
        if _is_osm(config):
            why = "does network.classes leave out the roads between"
        raise DataError(f"{config.roads}: no road begins where another ends; {why}?")
    return pairs


def _odd_trips(parts: Mapping[str, Trips]) -> list[str]:
    """What `prepare` will say of the trips of each split."""
    odd = [sentence for name, part in parts.items() for sentence in Clock.of(part).facts(name)["findings"]]
    hashes = {name: leaks.hashes(part) for name, part in parts.items()}
    return odd + leaks.findings(hashes, {name: np.arange(len(part)) for name, part in parts.items()})


def _lost_trips(config: ConvertConfig, found: Found, dropped: Mapping[str, int], road: str) -> list[str]:
    """Of trips that were dropped, if roads are unknown or many were; `road` is what the network calls one."""
    odd = []
    if found.unknown:
        odd.append(
            f"{config.trips.name}: {found.unknown} of {counted(found.trips_in_file, 'trip')} "
            f"{form(found.unknown, 'names', 'name')} roads that the network has not, as {found.example!r}; its roads "
            f"are called as {road!r}"
        )
    if sum(dropped.values()) > found.trips_in_file // 10:
        odd.append(f"{config.trips.name}: {_dropped(config, found, dropped)}")
    return odd


def read_roads(config: ConvertConfig) -> tuple[list[Road], list[str]]:
    """The roads of the network's file, by the format that its name says, and sentences about what is odd.

    Raises:
        DataError: it is malformed.
        ConfigError: its name says no format that is known.
    """
    name = config.roads.name.lower()
    if name.endswith(GEOJSON):
        return geojson.read(config.roads, config.network)
    if _is_osm(config):
        return osm.read(config.roads, config.network), []
    if config.roads.is_file():
        csv_faults.check_unpacked(config.roads)
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


def _is_osm(config: ConvertConfig) -> bool:
    return config.roads.name.lower().endswith(OSM)


def _check_kept(config: ConvertConfig, found: Found, kept: int, dropped: Mapping[str, int]) -> None:
    if kept < len(SPLITS):
        raise DataError(
            f"{config.trips} has {counted(kept, 'usable trip')}, too few for {', '.join(SPLITS)}, each of which needs "
            f"one or more: {_dropped(config, found, dropped)}"
        )


def _dropped(config: ConvertConfig, found: Found, dropped: Mapping[str, int]) -> str:
    """How many trips were dropped for which reason, and what the commonest comes from."""
    of = f"of {counted(found.trips_in_file, 'trip')}"
    if not any(dropped.values()):
        return f"{of} none was dropped. Give more trips; columns.trip says which rows are one"
    return f"{of} dropped: {reasons(dropped)}. {_why(config, found, dropped)}"


def _why(config: ConvertConfig, found: Found, dropped: Mapping[str, int]) -> str:
    """What the commonest reason for dropping trips comes from."""
    names = "see network.id and network.directions"
    if _is_osm(config):
        names = "FROM-TO, by the nodes at which ways of network.classes are cut"
    explained = {
        "unknown_road": f"Roads must be called in the trips as in the network ({names}), not {found.example!r}.",
        "off_network": "Trips must name every road that they drive on, in the direction of travel, without gaps: "
        "match points to roads first, and fill gaps there.",
        "too_short": "Trips need two roads or more: see columns.trip.",
        "time_backwards": "Times must not go backwards.",
    }
    return explained[max(dropped, key=lambda reason: dropped[reason])]


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
