"""Trips as rows of (trip, road, time) -> roads and entry times, trip by trip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from shared import ragged
from shared.arrays import Int64
from shared.errors import DataError
from student_trainer.convert.config import TripsConfig
from student_trainer.prepare import csv_faults
from student_trainer.prepare.raw import RawTrips, refuse

SECONDS = r"^\s*[+-]?\d+(?:\.\d+)?\s*$"
CLOCK = r"^\s*(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,]\d+)?\s*(?:Z|[+-]\d\d:?\d\d)?\s*$"
LATEST = 10**11
"""Seconds since 1970 beyond which a number is surely one of milliseconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a file of trips holds.

    Attributes:
        trips: those of known roads, in the order of the file.
        trips_in_file: all of them.
        unknown: trips that name a road which the network has not.
        example: such a road.
        repeated: rows on the road of the row before: the first of them says when it is entered.
    """

    trips: RawTrips
    trips_in_file: int
    unknown: int
    example: str
    repeated: int


def read(path: Path, columns: TripsConfig, numbers: Mapping[str, int]) -> Found:
    """Reads a file; rows of a trip may stand anywhere in it, and are put in the order of their times.

    Args:
        path: CSV in UTF-8.
        columns: their names.
        numbers: of the roads, by name.

    Raises:
        DataError: naming file, row and column.
    """
    frame = _read_csv(path, columns)
    trip = _trip_numbers(frame[columns.trip])
    times = _seconds(path, frame[columns.time])
    road = frame[columns.road].str.strip_chars()
    known = road.replace_strict(dict(numbers), default=-1, return_dtype=pl.Int64).to_numpy()
    order = np.lexsort((np.arange(len(trip)), times, trip))
    trip, times, known = trip[order], times[order], known[order]
    lost = np.unique(trip[known < 0])
    example = "" if not len(lost) else str(road[int(order[np.flatnonzero(known < 0)[0]])])
    kept = ~np.isin(trip, lost)
    again = np.zeros(len(trip), bool)
    again[1:] = (trip[1:] == trip[:-1]) & (known[1:] == known[:-1])
    repeated = int((kept & again).sum())
    kept &= ~again
    count = int(trip.max()) + 1
    lengths = np.bincount(trip[kept], minlength=count)
    offsets = ragged.offsets(lengths[lengths > 0])
    raw = RawTrips(path, known[kept].astype(np.int32), times[kept], offsets)
    return Found(raw, count, len(lost), example, repeated)


def _read_csv(path: Path, columns: TripsConfig) -> pl.DataFrame:
    """The three columns as text."""
    wanted = [columns.trip, columns.road, columns.time]
    try:
        csv_faults.check_kind(path)
        present = pl.read_csv(path, n_rows=0, infer_schema=False, glob=False).columns
        if missing := [name for name in wanted if name not in present]:
            error = csv_faults.missing_columns(path, present, missing, wanted)
            raise DataError(f"{error}. Or say what they are called: columns.trip=, columns.road=, columns.time=")
        frame = pl.read_csv(path, columns=wanted, infer_schema=False, glob=False).select(wanted)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        fault = csv_faults.fault_of(path.read_bytes()) if path.is_file() else None
        if fault is not None:
            refuse(path, fault[0] - 1, "", fault[1])
        raise DataError(f"{path} cannot be read as CSV: {' '.join(str(error).split())[:200]}") from None
    if frame.is_empty():
        raise DataError(f"{path} holds no row")
    for name in wanted:
        if len(empty := frame[name].is_null().arg_true()):
            refuse(path, int(empty[0]), name, "empty")
    return frame


def _trip_numbers(column: pl.Series) -> Int64:
    """0, 1, ... in the order in which trips first occur."""
    _, first, index = np.unique(column.to_numpy(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[index.reshape(-1)], np.int64)


def _seconds(path: Path, column: pl.Series) -> Int64:
    """Seconds since 1970 on the clock of the file."""
    if column.str.contains(SECONDS).all():
        values = column.str.strip_chars().cast(pl.Float64).to_numpy()
        if len(late := np.flatnonzero(np.abs(values) > LATEST)):
            problem = f"{column[int(late[0])]} is no time in seconds since 1970; is it one in milliseconds?"
            refuse(path, late[0], column.name, problem)
        return np.asarray(np.floor(values), np.int64)
    parts = column.str.extract_groups(CLOCK).struct.unnest()
    clock = parts["1"] + " " + (parts["2"] + ":00").str.slice(0, len("10:06:11"))
    times = clock.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False)
    for row in times.is_null().arg_true():
        problem = f"expected seconds since 1970, or a time as in 2008-05-22 13:10:06, not {column[row]!r}"
        refuse(path, row, column.name, problem)
    return times.dt.epoch("s").to_numpy()
