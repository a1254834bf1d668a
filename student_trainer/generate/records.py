"""Trips on disk: parts while a run is under way, then one Parquet file and upstream's CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from shared import files
from shared.errors import FileFormatError
from student_trainer.data import tables
from student_trainer.data.generated import SCHEMA
from student_trainer.generate.found import Found
from student_trainer.generate.pairs import Pairs

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def table(found: Sequence[Found], pairs: Pairs) -> pl.DataFrame:
    """One row per trip, by pair."""
    found = sorted(found, key=lambda trip: trip.pair)
    pair = np.array([trip.pair for trip in found], np.int64)
    columns: dict[str, Any] = {
        "pair": pair,
        "source_trip": pairs.trip[pair],
        "source_row": pairs.row[pair],
        "origin": pairs.origin[pair],
        "destination": pairs.destination[pair],
        "departure": pairs.departure[pair],
        "status": [trip.status for trip in found],
        "roads": [trip.roads.tolist() for trip in found],
        "times": [trip.times.tolist() for trip in found],
        "log_prob": [trip.log_prob for trip in found],
        "steps": [len(trip.roads) - 1 for trip in found],
        "expanded": [trip.expanded for trip in found],
    }
    return pl.DataFrame([pl.Series(name, values).cast(SCHEMA[name]) for name, values in columns.items()])


def write_parquet(path: Path, trips: pl.DataFrame) -> None:
    """Writes a table atomically."""
    with files.atomic_path(path) as temporary:
        trips.write_parquet(temporary)


def write_csv(path: Path, trips: pl.DataFrame) -> None:
    """Writes the trips in upstream's columns, atomically; lists are JSON text, times are on the file's clock."""
    departures = pl.from_epoch("departure", time_unit="s").dt.strftime(TIME_FORMAT)
    times = [
        json.dumps(pl.from_epoch(pl.Series(row, dtype=pl.Int64), time_unit="s").dt.strftime(TIME_FORMAT).to_list())
        for row in trips["times"].to_list()
    ]
    upstream = trips.select(
        pl.col("origin").alias("origin_road_id"),
        pl.col("destination").alias("destination_road_id"),
        pl.col("source_row").alias("source_index"),
        departures.alias("source_origin_time"),
        pl.Series("gene_trace_road_id", [json.dumps(row) for row in trips["roads"].to_list()], dtype=pl.String),
        pl.Series("gene_trace_datetime", times, dtype=pl.String),
    )
    with files.atomic_path(path) as temporary:
        upstream.write_csv(temporary)


class Parts:
    """The finished trips of a run under way.

        OUT/parts/settings.json     fingerprint of what decides the trips
        OUT/parts/N.parquet         trips of part N
        OUT/parts/N.json            what their search took; a part without it does not count

    Attributes:
        folder: where they are.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / "parts"

    @property
    def fingerprint(self) -> str | None:
        """Of the run that the parts belong to; None without one."""
        return fingerprint_of(self.folder / "settings.json")

    @property
    def holds_trips(self) -> bool:
        """Whether any part is finished."""
        return bool(self._whole())

    def start(self, fingerprint: str) -> None:
        """Makes the folder for parts of a run."""
        files.write_json(self.folder / "settings.json", {"fingerprint": fingerprint})

    def write(self, trips: pl.DataFrame, took: dict[str, Any]) -> None:
        """Adds a part."""
        number = 1 + max((int(path.stem) for path in self._whole()), default=-1)
        write_parquet(self.folder / f"{number}.parquet", trips)
        files.write_json(self.folder / f"{number}.json", took)

    def read(self) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        """All trips, by pair, and what each part took.

        Raises:
            FileFormatError: a part is damaged.
        """
        found, took = [pl.DataFrame(schema=SCHEMA)], []
        with tables.Reader() as reader:
            for path in self._whole():
                try:
                    took.append(json.loads(path.read_text(encoding="utf-8")))
                    found.append(reader.read(path.with_suffix(".parquet")).select(*SCHEMA).cast(pl.Schema(SCHEMA)))
                except (OSError, ValueError, FileFormatError, pl.exceptions.PolarsError) as error:
                    reason = " ".join(str(error).split())
                    raise FileFormatError(f"{path} or its trips are damaged ({reason}); remove {self.folder}") from None
        return pl.concat(found).sort("pair"), took

    def remove(self) -> None:
        """Removes the parts; the settings last, so that what is left is still known to be parts."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "settings.json"):
            path.unlink()
        files.destination(self.folder).rmdir()

    def _whole(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.glob("*.json") if path.stem.isdigit())


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint that a JSON file names; None without such a file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return str(document["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
