"""Raw HOSER files -> typed arrays. Every complaint names the file, the row and the column.

Rows are counted from 0 after the header, as `geo_id` is; the line in the file is beside it.
Nothing is evaluated: coordinates are JSON, lists of road classes are read by their quotes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from shared import ragged
from shared.arrays import Float64, Int32, Int64
from shared.errors import DataError
from shared.store import SPLITS
from student_trainer.prepare import csv_faults, points, records, road_classes, trip_text
from student_trainer.prepare.words import counted

REQUIRED = ("roadmap.geo", "roadmap.rel", *(f"{split}.csv" for split in SPLITS))
"""Files that every city has."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
TRIP_COLUMNS = ("rid_list", "time_list")


@dataclasses.dataclass(frozen=True, eq=False)
class Roads:
    """`roadmap.geo`: N directed roads with V vertices.

    Attributes:
        vertices: float64 [V, 2] latitude and longitude, degrees, roads back to back.
        vertex_offsets: int64 [N + 1].
        start_point, end_point: int64 [N]; roads have equal numbers where they meet, see `points`.
        length: float64 [N] metres.
        highway: one road class a road, lists already resolved.
        merged_points: end points that were taken for another one near them.
        findings: sentences about what was written in several ways.
    """

    vertices: Float64
    vertex_offsets: Int64
    start_point: Int64
    end_point: Int64
    length: Float64
    highway: Sequence[str]
    merged_points: int = 0
    findings: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.length)


@dataclasses.dataclass(frozen=True, eq=False)
class RawTrips:
    """Trips as they are in the file: one a row, of any length.

    Attributes:
        path: the file, for messages.
        roads: int32 [L], known road ids.
        times: int64 [L] entry times, seconds since 1970 on the file's clock.
        offsets: int64 [n + 1].
    """

    path: Path
    roads: Int32
    times: Int64
    offsets: Int64


class CellError(DataError):
    """A cell of a CSV file, or a whole row (no column), cannot be used; rows count from 0 after the header."""

    def __init__(self, path: Path, row: int, column: str, problem: str) -> None:
        where = f", column {column}" if column else ""
        super().__init__(f"{path}, row {row} (line {row + 2}){where}: {problem}")
        self.path, self.row, self.column, self.problem = path, row, column, problem

    def further_down(self, rows: int) -> CellError:
        """The same complaint about a cell that lies so many rows below."""
        return CellError(self.path, self.row + rows, self.column, self.problem)


def refuse(path: Path, row: int | np.integer, column: str, problem: str) -> NoReturn:
    """Raises the `CellError` of a cell of a CSV file."""
    raise CellError(path, int(row), column, problem)


def read_roads(path: Path) -> Roads:
    """Reads `roadmap.geo`.

    Raises:
        DataError: naming file, row and column.
    """
    frame = _read_csv(path, ["geo_id", "coordinates", "highway", "length"])
    if frame.is_empty():
        raise DataError(f"{path} holds no road")
    _check_ids(path, _integers(path, frame["geo_id"]))
    lines = [_parse_line(path, row, text) for row, text in enumerate(frame["coordinates"])]
    number, merged = points.number(np.array([line[end] for line in lines for end in (0, -1)], np.float64))
    start_point, end_point = number.reshape(-1, 2).T
    lng_lat = np.array([point for line in lines for point in line], np.float64)
    highway = _highways(path, frame["highway"])
    return Roads(
        vertices=np.ascontiguousarray(lng_lat[:, ::-1]),
        vertex_offsets=ragged.offsets(np.array([len(line) for line in lines])),
        start_point=start_point,
        end_point=end_point,
        length=_lengths(path, frame["length"]),
        highway=highway,
        merged_points=merged,
        findings=[*cut_findings(path), *road_classes.findings(frame["highway"].to_list(), highway)],
    )


def read_successor_pairs(path: Path, num_roads: int) -> tuple[Int64, Int64]:
    """Reads `roadmap.rel`: origin and destination of each row, int64.

    Raises:
        DataError: naming file, row and column; also for a road that `roadmap.geo` lacks, and if there is no pair.
    """
    columns = ["origin_id", "destination_id"]
    frame = _read_csv(path, columns)
    if frame.is_empty():
        raise DataError(
            f"{path} holds no pair of roads, so no road could follow another in a trip; write a row for each road and "
            "each one that may follow it"
        )
    origin, destination = (_integers(path, frame[column]) for column in columns)
    for column, ids in zip(columns, (origin, destination), strict=True):
        for row in np.flatnonzero((ids < 0) | (ids >= num_roads)):
            refuse(path, row, column, f"unknown road {ids[row]}; roadmap.geo has 0..{num_roads - 1}")
    return origin, destination


@dataclasses.dataclass(frozen=True)
class TripFile:
    """How the trips of a split are written.

    Attributes:
        path: `train.csv`, `val.csv` or `test.csv`.
        header: its first record, with the line feed.
        columns: their names.
        num_roads: roads are 0 to one less.
    """

    path: Path
    header: bytes
    columns: Sequence[str]
    num_roads: int


def open_trips(path: Path, num_roads: int) -> TripFile:
    """Reads the header of a split.

    Raises:
        DataError: there is no such file, or it lacks a column.
    """
    _check_exists(path)
    csv_faults.check_kind(path)
    with open(path, "rb") as stream:
        header = records.read_header(stream)
    return TripFile(path, header, _check_columns(path, io.BytesIO(header), TRIP_COLUMNS), num_roads)


def read_trip_blocks(file: TripFile) -> Iterator[bytes]:
    """The text of a split after its header, in blocks of whole records; raises `DataError`."""
    with open(file.path, "rb") as stream:
        records.read_header(stream)
        yield from records.read_blocks(file.path, stream, records.BLOCK_BYTES)


def parse_trips(file: TripFile, text: bytes) -> RawTrips:
    """The trips of a block of whole records.

    Raises:
        CellError: naming file, row within the block and column: a number that is not a road, a time that is not
            `YYYY-MM-DDTHH:MM:SSZ`, lists of different lengths.
        DataError: it is not CSV.
    """
    road_column, time_column = (file.columns.index(column) for column in TRIP_COLUMNS)
    plain = trip_text.read_block(text, len(file.columns), road_column, time_column, file.num_roads)
    if plain is None:
        return parse_any_trips(file, text)
    roads, times, lengths = plain
    return RawTrips(file.path, roads, times, ragged.offsets(lengths))


def parse_any_trips(file: TripFile, text: bytes) -> RawTrips:
    """As `parse_trips`, for all that CSV allows; slower."""
    if (fault := csv_faults.fault_of(text)) is not None:
        refuse(file.path, fault[0], "", fault[1])
    frame = _parse_csv(file.path, io.BytesIO(file.header + text), TRIP_COLUMNS)
    road_tokens, lengths = _split_lists(frame["rid_list"])
    time_tokens, time_counts = _split_lists(frame["time_list"])
    for row in np.flatnonzero(lengths != time_counts):
        refuse(file.path, row, "time_list", _unequal(int(time_counts[row]), int(lengths[row])))
    offsets = ragged.offsets(lengths)

    def refuse_token(column: str, tokens: pl.Series, index: int, problem: str) -> NoReturn:
        row = int(np.searchsorted(offsets, index, "right")) - 1
        refuse(file.path, row, column, f"{problem} {tokens[index]!r} at place {index - int(offsets[row])}")

    ids = road_tokens.cast(pl.Int64, strict=False)
    for index in ids.is_null().arg_true():
        refuse_token("rid_list", road_tokens, index, "expected road ids as in 12,57,903, not")
    roads = ids.to_numpy()
    for index in np.flatnonzero((roads < 0) | (roads >= file.num_roads)):
        refuse_token("rid_list", road_tokens, int(index), f"roadmap.geo has roads 0..{file.num_roads - 1}, not")
    times = time_tokens.str.to_datetime(TIME_FORMAT, time_unit="ms", strict=False)
    for index in times.is_null().arg_true():
        refuse_token("time_list", time_tokens, index, "expected times as in 2008-05-22T13:10:06Z, not")
    return RawTrips(file.path, roads.astype(np.int32), times.dt.epoch("s").to_numpy(), offsets)


def _unequal(times: int, roads: int) -> str:
    return f"{counted(times, 'time')} for {counted(roads, 'road')} in rid_list"


def cut_findings(path: Path) -> list[str]:
    """A sentence about a file whose last row has no line end."""
    if not csv_faults.ends_within_row(path):
        return []
    return [f"{path.name} does not end with a line end: if it was cut while it was copied, its last row is not whole"]


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; a directory in HOSER format has {', '.join(REQUIRED)}")


def _read_csv(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The given columns of a file as text; nothing else is interpreted."""
    _check_exists(path)
    csv_faults.check_kind(path)
    with open(path, "rb") as stream:
        records.read_header(stream)
        if (fault := csv_faults.fault_of(stream.read())) is not None:
            refuse(path, fault[0], "", fault[1])
    _check_columns(path, path, columns)
    return _parse_csv(path, path, columns)


def _check_columns(path: Path, source: Path | io.BytesIO, wanted: Sequence[str]) -> Sequence[str]:
    """All columns of the source."""
    with _reporting(path):
        present = pl.read_csv(source, n_rows=0, infer_schema=False, glob=False).columns
    if missing := [column for column in wanted if column not in present]:
        raise csv_faults.missing_columns(path, present, missing, wanted)
    return present


def _parse_csv(path: Path, source: Path | io.BytesIO, columns: Sequence[str]) -> pl.DataFrame:
    with _reporting(path):
        return pl.read_csv(source, columns=list(columns), infer_schema=False, glob=False).select(columns)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{path} cannot be read as CSV: {' '.join(str(error).split())[:200]}") from None


def _integers(path: Path, column: pl.Series) -> Int64:
    values = column.str.strip_chars().cast(pl.Int64, strict=False)
    for row in values.is_null().arg_true():
        refuse(path, row, column.name, f"expected an integer, not {column[row]!r}")
    return values.to_numpy()


def _check_ids(path: Path, ids: Int64) -> None:
    for row in np.flatnonzero(ids != np.arange(len(ids))):
        refuse(path, row, "geo_id", f"expected {row}, the number of the row, not {ids[row]}")


def _lengths(path: Path, column: pl.Series) -> Float64:
    values = column.str.strip_chars().cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy()
    for row in np.flatnonzero(~np.isfinite(values) | (values < 0)):
        refuse(path, row, "length", f"expected metres, not {column[int(row)]!r}")
    return values


def _parse_line(path: Path, row: int, text: str | None) -> list[tuple[float, float]]:
    """Longitude and latitude of each vertex."""

    def fail(problem: str) -> NoReturn:
        refuse(path, row, "coordinates", f"{problem}; expected JSON as in [[-122.40, 37.78], [-122.41, 37.79]]")

    try:
        line: Any = json.loads(text or "", parse_int=float, parse_constant=fail)
    except (json.JSONDecodeError, RecursionError) as error:
        fail(f"not JSON ({error})")
    if not isinstance(line, list) or len(line) < 2:
        fail("fewer than 2 points")
    for point in line:
        if not isinstance(point, list) or len(point) < 2 or not all(isinstance(value, float) for value in point):
            fail(f"{point!r} is not a point")
        if abs(point[0]) > 180 or abs(point[1]) > 90:
            swapped = ": are they exchanged?" if abs(point[0]) <= 90 and abs(point[1]) <= 180 else ""
            fail(f"[{point[0]:g}, {point[1]:g}] is not longitude and latitude{swapped}")
    return [(point[0], point[1]) for point in line]


def _highways(path: Path, column: pl.Series) -> list[str]:
    cleaned: dict[str | None, str] = {}
    for row, text in enumerate(column):
        if text not in cleaned:
            try:
                cleaned[text] = road_classes.class_of(text or "")
            except ValueError as error:
                refuse(path, row, "highway", str(error))
    return [cleaned[text] for text in column]


def _split_lists(column: pl.Series) -> tuple[pl.Series, Int64]:
    """Comma-separated lists: all items back to back, and how many each row has."""
    text = column.fill_null("").str.strip_chars()
    filled = text != ""
    lengths = (text.str.count_matches(",", literal=True) + 1).cast(pl.Int64) * filled.cast(pl.Int64)
    items = text.filter(filled).str.split(",").explode().str.strip_chars()
    return items, lengths.to_numpy()
