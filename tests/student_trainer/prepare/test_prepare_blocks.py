"""Reading trips block by block: no block shows in what is read, written or complained about."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from student_trainer.prepare import raw, records, splits
from student_trainer.prepare.arrays import ArrayWriter
from student_trainer.prepare.network import Successors
from student_trainer.prepare.raw import TripFile
from student_trainer.prepare.workers import Workers

ROADS = 12
EVERYWHERE = Successors.from_pairs(*np.divmod(np.arange(ROADS**2), ROADS), ROADS)
"""A network in which every road follows every road."""
FILE = TripFile(Path("some.csv"), b"traj_id,rid_list,time_list\n", ("traj_id", "rid_list", "time_list"), ROADS)

seconds = st.integers(-(10**9), 4 * 10**9)
trips = st.lists(st.lists(st.tuples(st.integers(0, ROADS - 1), seconds), max_size=5), min_size=1, max_size=6)


def written(rows: list[list[tuple[int, int]]], end: str = "\n") -> bytes:
    lines = []
    for number, row in enumerate(rows):
        times = ",".join(f"{np.datetime64(time, 's')}Z" for _, time in row)
        lines.append(f'{number},"{",".join(str(road) for road, _ in row)}","{times}"{end}')
    return "".join(lines).encode()


def content(found: raw.RawTrips) -> list[list[int]]:
    return [found.roads.tolist(), found.times.tolist(), found.offsets.tolist()]


@settings(deadline=None)  # the first call may compile
@given(trips, st.sampled_from(["\n", "\r\n"]))
def test_plain_trips_are_read_without_the_general_reader(rows: list[list[tuple[int, int]]], end: str) -> None:
    text = written(rows, end)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(raw, "parse_any_trips")
        found = raw.parse_trips(FILE, text)
    assert found.roads.tolist() == [road for row in rows for road, _ in row]
    assert found.times.tolist() == [time for row in rows for _, time in row]
    assert np.diff(found.offsets).tolist() == [len(row) for row in rows]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    trips,
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), st.sampled_from([*'0129,":TZ- \n\rx', ""])), max_size=3),
)
def test_both_readers_agree_on_whatever_is_written(
    rows: list[list[tuple[int, int]]], changes: list[tuple[int, int, str]]
) -> None:
    text = written(rows)
    for place, length, put in changes:
        place %= len(text)
        text = text[:place] + put.encode() + text[place + length :]
    text = text.rstrip(b"\n") + b"\n"
    try:
        expected = content(raw.parse_any_trips(FILE, text))
    except DataError as error:
        with pytest.raises(DataError) as caught:
            raw.parse_trips(FILE, text)
        assert str(caught.value) == str(error)
    else:
        assert content(raw.parse_trips(FILE, text)) == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2000-02-29T00:00:00Z", 951_782_400),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", -1),
        ("2100-02-28T23:59:59Z", 4_107_542_399),
        ("2100-02-29T00:00:00Z", None),
        ("2021-02-29T00:00:00Z", None),
        ("2021-04-31T00:00:00Z", None),
        ("2021-13-01T00:00:00Z", None),
        ("2021-00-01T00:00:00Z", None),
        ("2021-01-01T24:00:00Z", None),
        ("2021-01-01T00:60:00Z", None),
        ("2021-01-01 00:00:00Z", None),
        ("2021-01-01T00:00:00+", None),
    ],
)
def test_times_are_those_of_the_calendar(time: str, expected: int | None) -> None:
    text = f"0,1,{time}\n".encode()
    if expected is not None:
        assert raw.parse_trips(FILE, text).times.tolist() == [expected]
        return
    with pytest.raises(DataError, match=r"row 0 .* column time_list: expected times as in"):
        raw.parse_trips(FILE, text)


@given(st.lists(st.text(alphabet='a,\n"', max_size=8), max_size=8), st.integers(1, 20), st.booleans())
def test_blocks_are_whole_records(fields: list[str], size: int, is_ended: bool) -> None:
    rows = ['"' + field.replace('"', '""') + '",1\n' for field in fields]
    text = "".join(rows).encode() if is_ended else "".join(rows).encode()[:-1]
    blocks = list(records.read_blocks(Path("some.csv"), io.BytesIO(text), size))
    assert b"".join(blocks) == "".join(rows).encode()
    ends = set(itertools.accumulate((len(row) for row in rows), initial=0))
    assert set(itertools.accumulate(map(len, blocks))) <= ends


def test_a_quote_that_is_never_closed_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD", 1000)
    stream = io.BytesIO(b'0,"1"\n' + b'0,"1\n' + b"x" * 5000)
    with pytest.raises(DataError, match=r"some\.csv has no end of a row .* after byte 6: is a quote not closed\?"):
        list(records.read_blocks(Path("some.csv"), stream, 100))
    assert stream.tell() < 2000


def test_a_header_may_be_late_and_have_line_feeds() -> None:
    stream = io.BytesIO(b'\n\r\n"a\nb",c\n1,2\n')
    assert records.read_header(stream).strip() == b'"a\nb",c'
    assert stream.read() == b"1,2\n"
    assert records.read_header(stream) == b""


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("pieces", [[], [0], [3], [1, 0, 100_000, 7]])
def test_an_array_in_pieces_is_the_array_at_once(tmp_path: Path, dtype: type, pieces: list[int]) -> None:
    arrays: list[np.ndarray] = [np.arange(length, dtype=dtype) for length in pieces]
    with ArrayWriter(tmp_path / "pieces.npy", dtype) as writer:
        for array in arrays:
            writer.append(array)
    np.save(tmp_path / "whole.npy", np.concatenate([np.empty(0, dtype), *arrays]))
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_numbers_that_may_not_fit_are_refused(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "a.npy", np.int32) as writer, pytest.raises(TypeError, match="int64"):
        writer.append(np.zeros(1, np.int64))


def write_split(tmp_path: Path, name: str, text: bytes, strict: bool = False, count: int = 2) -> Path:
    path = tmp_path / "some.csv"
    path.write_bytes(FILE.header + text)
    with Workers(count) as workers:
        splits.write(raw.open_trips(path, ROADS), tmp_path / name, EVERYWHERE, strict, workers, lambda done: None)
    return tmp_path / name


@pytest.fixture(params=[1, 40, 200])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(splits, "BLOCK_ROADS", request.param)


ROWS = [[(road % ROADS, 10 * row + road) for road in range(row % 7)] for row in range(60)]


@pytest.mark.usefixtures("small_blocks")
def test_a_split_in_small_blocks_is_the_split_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(ROWS)
    small = write_split(tmp_path, "small", text)
    blocks = list(splits.read(small))
    monkeypatch.undo()
    whole = write_split(tmp_path, "whole", text, count=1)
    (expected,) = splits.read(whole)
    for name in splits.DTYPES:
        assert (small / f"{name}.npy").read_bytes() == (whole / f"{name}.npy").read_bytes()
    assert expected.source_rows.tolist() == [row for row in range(60) if row % 7 >= 2]
    for name in ("roads", "times", "source_rows", "lengths"):
        parts = [getattr(block, name) for block in blocks]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(expected, name))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("strict", [False, True])
def test_complaints_count_rows_from_the_top_of_the_file(tmp_path: Path, strict: bool) -> None:
    backwards, unknown = [(1, 5), (2, 4)], [(3, 0), (ROADS, 1)]
    message = r"row 60 \(line 62\), column " + ("time_list: time goes back" if strict else "rid_list: roadmap")
    with pytest.raises(DataError, match=message):
        write_split(tmp_path, "split", written([*ROWS, backwards if strict else unknown]), strict)


def test_results_are_in_order_and_few_are_held() -> None:
    taken, first_may_end = 0, threading.Event()

    def items() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, 101):  # noqa: UP028
            yield taken

    def slow_first(item: int) -> int:
        if item == 1:
            first_may_end.wait()
        return item

    with Workers(3) as workers:
        results = workers.in_order(slow_first, items())
        threading.Timer(0.05, first_may_end.set).start()
        for expected, result in enumerate(results, start=1):
            assert result == expected
            assert taken <= expected + 4
    assert taken == 100


@pytest.mark.parametrize("where", ["items", "function"])
def test_a_failure_comes_in_its_place(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        if where == "items":
            raise DataError("the sixth")
        yield 5

    def function(item: int) -> int:
        if item == 5:
            raise DataError("the sixth")
        return item

    seen = []
    with Workers(4) as workers, pytest.raises(DataError, match="the sixth"):
        for result in workers.in_order(function, items()):
            seen.append(result)  # noqa: PERF402
    assert seen == [0, 1, 2, 3, 4]
