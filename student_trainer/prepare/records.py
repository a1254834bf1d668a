"""CSV files in blocks of whole records, so that a file of any size takes little memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.errors import DataError

BLOCK_BYTES = 4 * 2**20
LONGEST_RECORD = 64 * 2**20
"""A record that is longer is taken for a quote that was never closed."""


def read_header(stream: BinaryIO) -> bytes:
    """The first record that is not empty, with a byte order mark if there is one; empty at the end of the file."""
    header = b""
    while line := stream.readline(LONGEST_RECORD):
        header += line
        if header.strip() and header.count(b'"') % 2 == 0:
            break
    return header


def read_blocks(path: Path, stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The rest of a file in blocks of about `size` bytes, each of whole records with their line feeds.

    A line feed between quotes ends no record.

    Raises:
        DataError: a record is longer than `LONGEST_RECORD`.
    """
    rest = b""
    while data := stream.read(size):
        data = rest + data
        end = _end_of_records(data)
        rest = data[end:]
        if len(rest) > LONGEST_RECORD:
            raise DataError(
                f"{path} has no end of a row for {LONGEST_RECORD // 2**20} MiB after byte {stream.tell() - len(rest)}: "
                "is a quote not closed?"
            )
        if end:
            yield data[:end]
    if rest:
        yield rest + b"\n"


def _end_of_records(data: bytes) -> int:
    """Bytes up to the last line feed outside of quotes; `data` begins outside."""
    quotes, end = data.count(b'"'), len(data)
    while (place := data.rfind(b"\n", 0, end)) >= 0:
        quotes -= data.count(b'"', place, end)
        if quotes % 2 == 0:
            return place + 1
        end = place
    return 0
