"""Trips that `generate` wrote: their format, and reading them, with a look whether they can be what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shared import ragged
from shared.arrays import Int64
from shared.errors import CompatibilityError, FileFormatError
from shared.store import SPLITS, SplitName, Store, Trips
from student_trainer.data import documents, tables
from student_trainer.data.tables import TableReader

FORMAT = "hoser-generated/1"
SCHEMA: dict[str, pl.DataType] = {
    "pair": pl.Int64(),
    "source_trip": pl.Int64(),
    "source_row": pl.Int64(),
    "origin": pl.Int32(),
    "destination": pl.Int32(),
    "departure": pl.Int64(),
    "status": pl.String(),
    "roads": pl.List(pl.Int32()),
    "times": pl.List(pl.Int64()),
    "log_prob": pl.Float64(),
    "steps": pl.Int32(),
    "expanded": pl.Int64(),
}
"""Columns of trips.parquet; see `Found` and `Pairs` of `generate`."""
READ = ("pair", "source_trip", "origin", "destination", "departure", "status", "roads", "times")
"""Those that are read again."""
ARRIVED = "arrived"


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
    summary = documents.read(folder / "summary.json", FORMAT, "generate")
    if summary.get("store") != store.fingerprint:
        raise CompatibilityError(f"{folder} was generated on another store than {store.path}; generate it again")
    if summary.get("split") not in SPLITS:
        raise FileFormatError(f"{folder / 'summary.json'} names no split")
    made = summary.get("weights")
    if made is not None and not (isinstance(made, dict) and {"file", "sha256"} <= made.keys()):
        raise FileFormatError(f"{folder / 'summary.json'} does not say which weights the trips are of")
    columns = {name: SCHEMA[name] for name in READ}
    frame = tables.read_columns(folder / "trips.parquet", columns, reader)
    path = folder / "trips.parquet"
    if frame.is_empty():
        raise FileFormatError(f"{path} holds no trip: nothing can be measured")
    lengths, counts = (frame[name].list.len().to_numpy().astype(np.int64) for name in ("roads", "times"))
    roads, times = (_flat(frame[name]) for name in ("roads", "times"))
    integers = {name: frame[name].to_numpy().astype(np.int64) for name in READ if SCHEMA[name].is_integer()}
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
