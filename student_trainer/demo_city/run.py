"""`student-trainer demo-city`: streets -> roads -> drivers -> trips -> HOSER files.

The city stands in for real data in tests and first runs: the same seed gives the same bytes.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import claims, files
from shared.errors import DataError
from student_trainer.demo_city import picture
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.drivers import Population, Trip
from student_trainer.demo_city.roads import Road, Successors, make_roads
from student_trainer.demo_city.streets import make_plan
from student_trainer.demo_city.traffic import Traffic

log = logging.getLogger(__name__)

MARKER = "demo_city.json"
"""Says that a directory holds a demo city, which may be replaced, and how it was made."""


def run(config: DemoCityConfig) -> int:
    """Writes the city and prints a summary as JSON; returns the exit code.

    Raises:
        ConfigError: `out` holds something else than a demo city, or another job writes there.
        DataError: it cannot be written.
    """
    try:
        with claims.directory(config.out):
            claims.check(config.out, "a demo city", lambda out: (out / MARKER).is_file())
            summary = _write_city(config)
    except OSError as error:
        raise DataError(f"cannot write {config.out}: {error}") from None
    log.info("wrote %s", config.out)
    print(json.dumps({"out": str(config.out), **summary}))
    return 0


def _write_city(config: DemoCityConfig) -> dict[str, Any]:
    random = np.random.default_rng(config.seed)
    plan = make_plan(config.columns, config.rows, random)
    roads, successors = make_roads(plan.streets)
    traffic = Traffic(roads, successors)
    middle = np.array([road.middle for road in roads])
    population = Population(successors, traffic, middle, config.drivers, random)
    trips = {name: population.trips(count, config.weeks) for name, count in config.trips.model_dump().items()}
    summary = _summary(roads, successors, trips)
    with files.atomic_directory(config.out) as folder:
        _write_roads(folder, roads, successors)
        for split, members in trips.items():
            _write_trips(folder / f"{split}.csv", members)
        (folder / "city.svg").write_text(picture.render(plan, roads), encoding="utf-8")
        settings = config.model_dump(mode="json", exclude={"out"})
        files.write_json(folder / MARKER, {"settings": settings, "summary": summary})
    return summary


def _summary(roads: Sequence[Road], successors: Successors, trips: dict[str, list[Trip]]) -> dict[str, Any]:
    lengths = [len(trip.roads) for members in trips.values() for trip in members]
    return {
        "roads": len(roads),
        "successor_pairs": sum(map(len, successors)),
        "max_out_degree": max(map(len, successors)),
        "trips": {split: len(members) for split, members in trips.items()},
        "mean_roads_per_trip": round(sum(lengths) / len(lengths), 2),
        "shortest_trip": min(lengths),
        "longest_trip": max(lengths),
    }


def _write_roads(folder: Path, roads: Sequence[Road], successors: Successors) -> None:
    _write_csv(
        folder / "roadmap.geo",
        ("geo_id", "type", "coordinates", "highway", "length", "lanes", "oneway"),
        (
            (i, "LineString", _coordinates(road), road.road_class, f"{road.length:.2f}", "", road.one_way)
            for i, road in enumerate(roads)
        ),
    )
    pairs = [(origin, destination) for origin, following in enumerate(successors) for destination in following]
    _write_csv(
        folder / "roadmap.rel",
        ("rel_id", "type", "origin_id", "destination_id"),
        ((i, "geo", *pair) for i, pair in enumerate(pairs)),
    )


def _coordinates(road: Road) -> str:
    return "[" + ", ".join(f"[{lng}, {lat}]" for lat, lng in road.points) + "]"


def _write_trips(path: Path, trips: Sequence[Trip]) -> None:
    _write_csv(
        path,
        ("traj_id", "entity_id", "rid_list", "time_list"),
        (
            (i, trip.driver, ",".join(map(str, trip.roads)), ",".join(f"{t}Z" for t in trip.times.astype("M8[s]")))
            for i, trip in enumerate(trips)
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
