"""Reading a store: whole, damaged, and too large for the memory."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared import ragged, store
from shared.errors import DataError, FileFormatError
from shared.grid import Grid
from shared.store import Store, Trips
from shared.vocab import Tokeniser, Vocabulary

GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
TOKENISER = Tokeniser(Vocabulary.of_occupied(np.array([3, 8, 30])), GRID)
LENGTHS = [3, 2, 0, 5]


def make_trips(lengths: list[int]) -> Trips:
    total = sum(lengths)
    return Trips(
        roads=np.arange(total, dtype=np.int32) * 7 % 31,
        times=1_700_000_000 + np.arange(total, dtype=np.int64) ** 2,
        offsets=ragged.offsets(np.array(lengths, np.int64)),
        source_rows=np.arange(len(lengths), dtype=np.int64) * 10,
    )


def write_store(path: Path, **manifest: Any) -> Path:
    """A store with a train and a val split."""
    (path / "network").mkdir(parents=True)
    assert TOKENISER.vocabulary.occupied is not None
    np.save(path / "network" / "occupied_cells.npy", TOKENISER.vocabulary.occupied)
    np.save(path / "network" / "road_token.npy", np.array([0, 2, 1, 1], np.int32))
    for split in ("train", "val"):
        (path / split).mkdir()
        for name, array in vars(make_trips(LENGTHS)).items():
            np.save(path / split / f"{name}.npy", array)
    content = {"format": store.FORMAT, "fingerprint": "f00d", "splits": {"train": {}, "val": {}}, **TOKENISER.to_dict()}
    (path / "store.json").write_text(json.dumps(content | manifest))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def test_a_store_is_what_was_written(path: Path) -> None:
    opened = Store(path)
    assert opened.fingerprint == "f00d"
    assert opened.tokeniser.fingerprint == TOKENISER.fingerprint
    assert opened.road_token.tolist() == [0, 2, 1, 1]
    trips = opened.trips("train")
    assert len(trips) == len(LENGTHS)
    assert trips.lengths.tolist() == LENGTHS
    for name, array in vars(make_trips(LENGTHS)).items():
        np.testing.assert_array_equal(getattr(trips, name), array)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_take_against_a_loop(lengths: list[int], data: st.DataObject) -> None:
    trips = make_trips(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    taken = trips.take(np.array(chosen, np.int64))
    assert len(taken) == len(chosen)
    assert taken.lengths.tolist() == [lengths[trip] for trip in chosen]
    assert taken.source_rows.tolist() == [10 * trip for trip in chosen]
    for place, trip in enumerate(chosen):
        here = slice(taken.offsets[place], taken.offsets[place + 1])
        there = slice(trips.offsets[trip], trips.offsets[trip + 1])
        np.testing.assert_array_equal(taken.roads[here], trips.roads[there])
        np.testing.assert_array_equal(taken.times[here], trips.times[there])


def test_taken_trips_are_in_memory(path: Path) -> None:
    trips = Store(path).trips("train", "mmap").take(np.array([3, 0]))
    assert not isinstance(trips.roads, np.memmap)


@pytest.mark.parametrize(
    ("cache", "free", "mapped"),
    [
        ("ram", 0, False),
        ("mmap", 2**40, True),
        ("auto", 2**40, False),
        ("auto", 0, True),
        ("auto", "just enough", False),
        ("auto", "a byte too little", True),
    ],
)
def test_what_does_not_fit_is_memory_mapped(
    path: Path,
    cache: store.Cache,
    free: int | str,
    mapped: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    size = sum(file.stat().st_size for file in (path / "train").iterdir())
    monkeypatch.setattr(store, "RAM_SHARE", 0.5)
    available = {"just enough": 2 * size, "a byte too little": 2 * size - 2}.get(str(free), free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=available))
    with caplog.at_level(logging.DEBUG):
        trips = Store(path).trips("train", cache)
    assert all(isinstance(array, np.memmap) is mapped for array in vars(trips).values())
    assert ("memory-mapped" if mapped else "held in memory") in caplog.text
    told = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert bool(told) == (mapped and cache == "auto"), "only what nobody asked for is worth a line"
    np.testing.assert_array_equal(trips.roads, make_trips(LENGTHS).roads)
    assert trips.roads.flags.writeable is not mapped


def test_a_directory_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileFormatError, match=r"is not a store .*student-trainer prepare"):
            Store(place)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match="file"):
        Store(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "\x00", "3", "null", "[]", "{}", '{"format": "hoser-store/0"}'])
def test_another_manifest_is_refused(path: Path, text: str) -> None:
    (path / "store.json").write_text(text)
    with pytest.raises(FileFormatError, match="store"):
        Store(path)


def test_a_manifest_that_is_not_text_is_refused(path: Path) -> None:
    (path / "store.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(FileFormatError, match=r"store\.json cannot be read"):
        Store(path)


def test_a_manifest_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"store: not a vocabulary.*`prepare` again"):
        Store(write_store(tmp_path / "store", vocabulary={}))


def test_a_missing_table_of_cells_is_noticed(path: Path) -> None:
    (path / "network" / "occupied_cells.npy").unlink()
    with pytest.raises(FileFormatError, match="table of cells"):
        Store(path)


def test_a_missing_split_is_named_with_those_that_exist(path: Path) -> None:
    with pytest.raises(DataError, match="no test split; it holds train, val"):
        Store(path).trips("test")


def pickled(path: Path) -> bytes:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path.read_bytes()


def test_a_pickled_array_is_refused(path: Path) -> None:
    file = path / "train" / "roads.npy"
    file.write_bytes(pickled(file))
    with pytest.raises(FileFormatError, match=r"roads\.npy is missing or damaged .*`prepare` again"):
        Store(path).trips("train")


@pytest.mark.parametrize("cache", ["ram", "mmap"])
@pytest.mark.parametrize("name", ["roads", "times", "offsets", "source_rows"])
def test_a_missing_or_truncated_array_is_refused(path: Path, cache: store.Cache, name: str) -> None:
    file = path / "train" / f"{name}.npy"
    data = file.read_bytes()
    for length in (0, 5, 60, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match=rf"{name}\.npy is missing or damaged"):
            Store(path).trips("train", cache)
    file.unlink()
    with pytest.raises(FileFormatError, match=rf"{name}\.npy is missing or damaged"):
        Store(path).trips("train", cache)


@given(data=st.binary(max_size=100))
@example(data=b"PK\x03\x04" + bytes(30))
@example(
    data=b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(127)
    + b"\n"
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused_in_one_line(path: Path, data: bytes) -> None:
    (path / "network" / "road_token.npy").write_bytes(data)
    with pytest.raises(FileFormatError, match=r"road_token\.npy is missing or damaged") as raised:
        _ = Store(path).road_token
    assert "\n" not in str(raised.value)


def test_a_damaged_table_of_cells_is_refused(path: Path) -> None:
    (path / "network" / "occupied_cells.npy").write_bytes(b"garbage")
    with pytest.raises(FileFormatError, match=r"occupied_cells\.npy is missing or damaged"):
        Store(path)


def test_an_unknown_array_of_the_network_is_named(path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"nothing\.npy is missing"):
        Store(path).network("nothing")


@pytest.mark.parametrize("cache", ["ram", "mmap"])
def test_a_header_that_does_not_end_is_refused(path: Path, cache: store.Cache) -> None:
    """numpy's parser fails on it with an error of the tokenizer."""
    array = path / "train" / "roads.npy"
    data = array.read_bytes()
    array.write_bytes(data.replace(b"'shape': (", b"'shape': [", 1))
    with pytest.raises(FileFormatError, match=r"roads\.npy is missing or damaged"):
        store.Store(path).trips("train", cache)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: a + 1),
        ("offsets", lambda a: a[:-1]),
        ("offsets", lambda a: a[::-1].copy()),
        ("offsets", lambda a: a.astype(np.float64)),
        ("offsets", lambda a: a[:0]),
        ("times", lambda a: a[:-1]),
        ("roads", lambda a: a[None]),
        ("roads", lambda a: a.astype(np.int64)),
        ("source_rows", lambda a: a[1:]),
    ],
)
@pytest.mark.parametrize("cache", ["ram", "mmap"])
def test_arrays_that_do_not_fit_together_are_refused(path: Path, cache: store.Cache, name: str, change: Any) -> None:
    array = path / "train" / f"{name}.npy"
    np.save(array, change(np.load(array)))
    with pytest.raises(FileFormatError, match="its arrays do not fit together"):
        store.Store(path).trips("train", cache)


@pytest.mark.parametrize(
    "statistics", [None, 3, {"mu": "many", "sigma": 1.0}, {"mu": 1.0}, {"mu": 1e999, "sigma": 1.0}]
)
def test_statistics_of_other_kinds_are_refused(path: Path, statistics: Any) -> None:
    opened = store.Store(path)
    opened.manifest["statistics"] = statistics
    with pytest.raises(FileFormatError, match=r"store\.json lacks statistics\.mu and \.sigma; run `prepare` again"):
        assert opened.time_scale


def test_a_manifest_without_a_fingerprint_is_refused(path: Path) -> None:
    opened = store.Store(path)
    del opened.manifest["fingerprint"]
    with pytest.raises(FileFormatError, match=r"store\.json lacks fingerprint"):
        assert opened.fingerprint
