"""Reads Parquet files in a process of its own.

Damaged pages can make the Parquet reader of polars ask for exabytes, and end its process without an exception. So a
child reads, which holds nothing else, and hands over the columns in Arrow's IPC format; if it ends, the file was
damaged.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import polars as pl

from shared.errors import FileFormatError

_CHILD = """
import io, os, sys
import polars as pl
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
out = sys.stdout.buffer
for line in sys.stdin.buffer:
    try:
        with open(os.fsdecode(bytes.fromhex(line.decode())), "rb") as file:
            frame = pl.read_parquet(io.BytesIO(file.read()))
        made = io.BytesIO()
        frame.write_ipc(made)
        kind, data = b"+", made.getvalue()
    except OSError as error:
        kind, data = b"-", (error.strerror or str(error)).encode(errors="replace")
    except (Exception, pl.exceptions.PanicException) as error:
        kind, data = b"-", (str(error) or type(error).__name__).encode(errors="replace")
    out.write(kind + len(data).to_bytes(8, "little"))
    out.write(data)
    out.flush()
"""
"""Takes paths, in hexadecimal, a line each. Answers with + or -, a length of 8 bytes, and the table or the reason."""


class Reader:
    """A process that reads tables, one after another; it is started again after a file that has ended it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: Path) -> pl.DataFrame:
        """All columns of a Parquet file.

        Raises:
            FileFormatError: it is missing or damaged.
        """
        kind, data = self._ask(path)
        if kind == b"+":
            return pl.read_ipc(io.BytesIO(data))
        lines = data.decode(errors="replace").strip().splitlines()
        raise FileFormatError(f"{path} is missing or damaged ({lines[0] if lines else 'unreadable'})")

    def close(self) -> None:
        """Ends the process."""
        self._end()
        self._said.close()

    def _ask(self, path: Path) -> tuple[bytes, bytes]:
        if self._child is None:
            command = [sys.executable, "-P", "-c", _CHILD]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0
            )
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        self._said.seek(0)
        self._said.truncate()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(os.fsencode(path).hex().encode() + b"\n")
        head = _exactly(child.stdout, 9)
        data = _exactly(child.stdout, int.from_bytes(head[1:], "little")) if len(head) == 9 else b""
        if len(head) == 9 and len(data) == int.from_bytes(head[1:], "little"):
            return head[:1], data
        return b"-", f"its reader ended, {self._end()}".encode()

    def _end(self) -> str:
        """Ends the child; its exit code or signal, and its last words."""
        if self._child is None:
            return ""
        child, self._child = self._child, None
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        code = child.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").split("\n", 1)[0].strip()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"{how}: {said}" if said else how


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """So many bytes of a pipe; fewer if it ends."""
    pieces, left = [], size
    while left and (piece := stream.read(min(left, 1 << 24))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def read(path: Path) -> pl.DataFrame:
    """All columns of one Parquet file; raises `FileFormatError`."""
    with Reader() as reader:
        return reader.read(path)


TableReader = Callable[[Path], pl.DataFrame]
"""All columns of a Parquet file, as `read` gives them."""


def read_columns(path: Path, columns: Mapping[str, Any], reader: TableReader = read) -> pl.DataFrame:
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
