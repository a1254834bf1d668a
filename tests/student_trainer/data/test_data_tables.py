"""Tables are read where the end of the reader ends nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from shared.errors import FileFormatError
from student_trainer.data import tables

FRAME = pl.DataFrame(
    {"text": ["a", "b", None], "numbers": [1, 2, 3], "lists": [[1, 2], [], [3]]},
    schema={"text": pl.String, "numbers": pl.Int32, "lists": pl.List(pl.Int64)},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    FRAME.write_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def test_a_table_is_what_was_written(path: Path) -> None:
    assert tables.read(path).equals(FRAME) and tables.read(path).schema == FRAME.schema
    empty = FRAME.clear()
    empty.write_parquet(path)
    assert tables.read(path).equals(empty) and tables.read(path).schema == FRAME.schema


@pytest.mark.parametrize("name", ["[a-b]*?.parquet", "a=1/x y\n.parquet", "é\udcff.parquet", "%41$HOME.parquet"])
def test_a_path_is_taken_as_it_is(path: Path, tmp_path: Path, name: str) -> None:
    """No pattern, no partition, no variable; and bytes that are no UTF-8."""
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    os.link(path, other)
    assert tables.read(other).equals(FRAME)


def test_no_byte_ends_who_asks(path: Path, tmp_path: Path) -> None:
    """Every byte of a small file raised by one, and set to 255: of which polars 2.1 does not survive some."""
    seed = path.read_bytes()
    ended = 0
    with tables.Reader() as reader:
        for place in range(len(seed)):
            for value in {(seed[place] + 1) % 256, 255} - {seed[place]}:
                path.write_bytes(seed[:place] + bytes([value]) + seed[place + 1 :])
                try:
                    reader.read(path)
                except FileFormatError as error:
                    assert str(error).startswith(f"{path} is missing or damaged (")
                    ended += "its reader ended, SIGABRT" in str(error)
        path.write_bytes(seed)
        assert reader.read(path).equals(FRAME)
    assert ended or pl.__version__ != "2.1.0"


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        ("print('last words', file=sys.stderr, flush=True); os.abort()", "its reader ended, SIGABRT: last words"),
        ("os._exit(7)", "its reader ended, exit code 7"),
        ("out.write(b'+' + bytes(8)[:3]); out.flush(); os._exit(0)", "its reader ended, exit code 0"),
        ("out.write(b'+' + bytes([9]) + bytes(7) + b'abc'); out.flush(); os._exit(0)", "its reader ended, exit code 0"),
        ("raise pl.exceptions.PanicException('assertion failed\\nand more')", "assertion failed"),
        ("raise ValueError", "ValueError"),
    ],
)
def test_the_end_of_a_reader_is_damage(path: Path, monkeypatch: pytest.MonkeyPatch, happens: str, reason: str) -> None:
    child = tables._CHILD.replace("            frame = pl", f"            {happens}\n            frame = pl")
    monkeypatch.setattr(tables, "_CHILD", child)
    with tables.Reader() as reader:
        for _ in range(2):
            with pytest.raises(FileFormatError) as raised:
                reader.read(path)
            assert str(raised.value) == f"{path} is missing or damaged ({reason})"


def test_a_reader_goes_on_after_damage(path: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(path.read_bytes()[:-9])
    with tables.Reader() as reader:
        for name, reason in (("damaged", "missing or damaged"), ("nowhere", r"\(No such file or directory\)")):
            with pytest.raises(FileFormatError, match=reason):
                reader.read(tmp_path / name)
        with pytest.raises(FileFormatError, match="Is a directory"):
            reader.read(tmp_path)
        assert reader.read(path).equals(FRAME)
