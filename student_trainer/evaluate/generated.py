"""Reads what `generate` wrote, and looks whether it can be what it says it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shared import ragged
from shared.arrays import Int64
from shared.errors import CompatibilityError, FileFormatError
from shared.store import SPLITS, SplitName, Store, Trips
from student_trainer.data import tables

FORMAT = "hoser-generated/1"
COLUMNS: dict[str, Any] = {
    "pair": pl.Int64,
    "source_trip": pl.Int64,
    "origin": pl.Int32,
    "destination": pl.Int32,
    "departure": pl.Int64,
    "status": pl.String,
    "roads": pl.List(pl.Int32),
    "times": pl.List(pl.Int64),
}
"""What is read of `trips.parquet`."""
ARRIVED = "arrived"

TableReader = Callable[[Path], pl.DataFrame]
"""All columns of a Parquet file, as `tables.read` gives them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """n OD pairs and the trip generated for each.

    Attributes:
        summary: what `generate` says of them.
        pair, source_trip: int64 [n] number of the pair, and index of the real trip in the split.
        origin, destination: int64 [n], as they were asked for.
        status: n texts.
        trips: the generated trips, at least one road each; `source_rows` are the pairs.
    """

    summary: dict[str, Any]
    pair: Int64
    source_trip: Int64
    origin: Int64
    destination: Int64
    status: npt.NDArray[np.str_]
    trips: Trips

    @property
    def arrived(self) -> npt.NDArray[np.bool_]:
        """Whether each trip reached the destination that was asked for."""
        return np.asarray(self.status == ARRIVED)

    @property
    def split(self) -> SplitName:
        """The split that the pairs are from."""
        split: SplitName = self.summary["split"]
        return split


def read(folder: Path, store: Store, reader: TableReader = tables.read) -> Generated:
    """The trips in a directory that `generate` wrote.

    Raises:
        FileFormatError: it is no such directory, or is damaged.
        CompatibilityError: it was generated on another store.
    """
    summary = read_document(folder / "summary.json", FORMAT, "generate")
    if summary.get("store") != store.fingerprint:
        raise CompatibilityError(f"{folder} was generated on another store than {store.path}; generate it again")
    if summary.get("split") not in SPLITS:
        raise FileFormatError(f"{folder / 'summary.json'} names no split")
    frame = read_parquet(folder / "trips.parquet", COLUMNS, reader)
    path = folder / "trips.parquet"
    if frame.is_empty():
        raise FileFormatError(f"{path} holds no trip: nothing can be measured")
    lengths, counts = (frame[name].list.len().to_numpy().astype(np.int64) for name in ("roads", "times"))
    roads, times = (_flat(frame[name]) for name in ("roads", "times"))
    integers = {name: frame[name].to_numpy().astype(np.int64) for name in COLUMNS if COLUMNS[name].is_integer()}
    found = Generated(
        summary=summary,
        status=frame["status"].to_numpy().astype(np.str_),
        trips=Trips(roads.astype(np.int32), times.astype(np.int64), ragged.offsets(lengths), integers["pair"]),
        **{name: integers[name] for name in ("pair", "source_trip", "origin", "destination")},
    )
    _check(path, found, counts, len(store.network("road_zone")), store)
    return found


def _check(path: Path, found: Generated, counts: Int64, num_roads: int, store: Store) -> None:
    trips, lengths = found.trips, found.trips.lengths
    if (lengths == 0).any() or (lengths != counts).any():
        _refuse(path, (lengths == 0) | (lengths != counts), "has no road, or other than one time for each road")
    bad = (trips.roads < 0) | (trips.roads >= num_roads)
    if bad.any():
        _refuse(path, np.logical_or.reduceat(bad, trips.offsets[:-1]), f"has an unknown road; there are {num_roads}")
    late = np.diff(trips.times, prepend=trips.times[:1]) < 0
    late[trips.offsets[:-1]] = False
    if late.any():
        _refuse(path, np.logical_or.reduceat(late, trips.offsets[:-1]), "goes back in time")
    if (trips.roads[trips.offsets[:-1]] != found.origin).any():
        _refuse(path, trips.roads[trips.offsets[:-1]] != found.origin, "does not start at its origin")
    last = trips.roads[trips.offsets[1:] - 1]
    if (found.arrived != (last == found.destination)).any():
        _refuse(path, found.arrived != (last == found.destination), "says arrived where it is not, or not where it is")
    if len(np.unique(found.pair)) != len(found.pair):
        raise FileFormatError(f"{path}: pairs occur twice")
    real = store.trips(found.split)
    if (found.source_trip < 0).any() or (found.source_trip >= len(real)).any():
        raise FileFormatError(f"{path}: source_trip lies outside the {len(real)} trips of {found.split}")
    starts, ends = real.offsets[found.source_trip], real.offsets[found.source_trip + 1] - 1
    other = (real.roads[starts] != found.origin) | (real.roads[ends] != found.destination)
    if other.any():
        _refuse(path, other, f"has another origin or destination than its real trip in {found.split}")


def _refuse(path: Path, bad: npt.NDArray[np.bool_], problem: str) -> None:
    raise FileFormatError(f"{path}, row {int(np.flatnonzero(bad)[0])}: the trip {problem}; generate it again")


def _flat(column: pl.Series) -> npt.NDArray:
    """The values of lists back to back; empty lists have none."""
    return column.filter(column.list.len() > 0).explode().to_numpy()


def read_document(path: Path, expected: str, job: str) -> dict[str, Any]:
    """A JSON object with a format of ours.

    Raises:
        FileFormatError: it is missing, damaged or of another format; names the job that writes such files.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist; make it with `student-trainer {job}`") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        raise FileFormatError(f"{path} is not of the format {expected}; make it again with `student-trainer {job}`")
    return document


def read_parquet(path: Path, columns: dict[str, Any], reader: TableReader = tables.read) -> pl.DataFrame:
    """Columns of a Parquet file, without nulls and of the given types.

    Raises:
        FileFormatError: it is missing or damaged, a column is missing, of another type, or has nulls.
    """
    frame = reader(path)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise FileFormatError(f"{path} lacks the columns {', '.join(missing)}")
    frame = frame.select(list(columns))
    for name, dtype in columns.items():
        if frame.schema[name] != dtype:
            raise FileFormatError(f"{path}, column {name}: expected {dtype}, found {frame.schema[name]}")
        column = frame[name]
        lists = isinstance(dtype, pl.List)
        if column.null_count() or (lists and column.filter(column.list.len() > 0).explode().null_count()):
            raise FileFormatError(f"{path}, column {name}: has values that are missing")
    return frame
