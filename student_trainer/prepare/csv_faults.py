"""What is wrong with a file that should be CSV in UTF-8, and how to mend it: compressed, cut, of another alphabet."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from shared.errors import DataError

HEAD_BYTES = 2**20
"""Looked at for line ends."""


@dataclasses.dataclass(frozen=True)
class Packer:
    """A program that compresses files.

    Attributes:
        name: the program's.
        ending: what it appends to the names of files.
        magic: first bytes of its files.
        unpack: the command, before the name of a file, that writes what is in it.
    """

    name: str
    ending: str
    magic: bytes
    unpack: str


ZIP = Packer("zip", ".zip", b"PK\x03\x04", "unzip -p")
PACKERS = (
    Packer("gzip", ".gz", b"\x1f\x8b", "gunzip <"),
    Packer("bzip2", ".bz2", b"BZh", "bunzip2 <"),
    Packer("xz", ".xz", b"\xfd7zXZ", "unxz <"),
    Packer("zstd", ".zst", b"\x28\xb5\x2f\xfd", "zstd -d <"),
)
"""Of single files; others' magic is a spreadsheet's, too."""
OTHER_FILES = {
    ZIP.magic: "a ZIP archive or a spreadsheet; unpack it, or export it as CSV in UTF-8",
    b"PAR1": "a Parquet file; write it as CSV",
    b"\xff\xfe": "in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8",
    b"\xfe\xff": "in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8",
}
"""First bytes of what is often given instead, and the remedy."""


def check_kind(path: Path) -> None:
    """Looks at the beginning of a file.

    Raises:
        DataError: it is compressed, in UTF-16, or its lines end in a way that nothing reads as line ends.
    """
    check_unpacked(path)
    name = shlex.quote(str(path))
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    for magic, problem in OTHER_FILES.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {problem.format(name)}")
    if b"\r" in head and b"\n" not in head:
        raise DataError(
            f"{path} ends its lines with carriage returns alone, as old Macs did; "
            f"convert it: tr '\\r' '\\n' < {name} > {name}.new"
        )


def check_unpacked(path: Path) -> None:
    """Raises `DataError` with the command that unpacks a file, if it is compressed."""
    with open(path, "rb") as stream:
        head = stream.read(max(len(packer.magic) for packer in PACKERS))
    for packer in PACKERS:
        if head.startswith(packer.magic):
            raise DataError(f"{path} is compressed with {packer.name}; unpack it: {_unpacking_in_place(path, packer)}")


def unpacking(path: Path) -> str:
    """The command that makes a file which is not there from a compressed one beside it; empty if there is none."""
    for packer in (*PACKERS, ZIP):
        packed = path.with_name(path.name + packer.ending)
        if packed.is_file():
            return _command(packer, packed, path)
    return ""


def _unpacking_in_place(path: Path, packer: Packer) -> str:
    """The command for a file whose name says that it is compressed, or does not."""
    if path.suffix == packer.ending:
        return _command(packer, path, path.with_suffix(""))
    packed = path.with_name(f"{path.name}.packed")
    return f"{shlex.join(['mv', str(path), str(packed)])} && {_command(packer, packed, path)}"


def _command(packer: Packer, packed: Path, path: Path) -> str:
    return f"{packer.unpack} {shlex.quote(str(packed))} > {shlex.quote(str(path))}"


def ends_within_row(path: Path) -> bool:
    """Whether the last row has no line end: the file may have been cut."""
    with open(path, "rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) not in (b"\n", b"\r")


def missing_columns(path: Path, present: Sequence[str], missing: Sequence[str], wanted: Sequence[str]) -> DataError:
    """The complaint about columns that a file lacks, of those that are wanted, with what may have been meant."""
    text = f"{path}, line 1: has no column {', '.join(missing)}; it has {', '.join(map(repr, present))}"
    if len(present) == 1 and any(mark in present[0] for mark in ";\t|"):
        mark = next(mark for mark in ";\t|" if mark in present[0])
        return DataError(f"{text}. It is separated by {mark!r}; write it with commas")
    plain = {name.strip().casefold(): name for name in present}
    for name in missing:
        if name in plain:
            return DataError(f"{text}. Rename {plain[name]!r} to {name!r}: no blanks, and small letters")
        spare = [key for key, given in plain.items() if given not in wanted]
        if near := difflib.get_close_matches(name, spare, 1):
            return DataError(f"{text}. Is {plain[near[0]]!r} meant for {name!r}? Then rename it")
    return DataError(text)


def fault_of(text: bytes) -> tuple[int, str] | None:
    """What makes rows unreadable: the row, counted from the beginning of the text, and what is wrong with it.

    None if it is neither of another alphabet nor cut within quotes.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        word = text[max(0, error.start - 8) : error.start + 8].decode("latin-1").strip()
        return text.count(b"\n", 0, error.start), (
            f"byte 0x{text[error.start]:02x} is not UTF-8 (near {word!r}, read as Latin-1); "
            "convert the file: iconv -f LATIN1 -t UTF-8"
        )
    if text.count(b'"') % 2 and (place := _open_quote(text)) >= 0:
        return text.count(b"\n", 0, place), (
            "a quote is opened and never closed: the file ends within a row. Was it cut while it was copied? "
            "Compare its size with the original's"
        )
    return None


def _open_quote(text: bytes) -> int:
    """Where the quote stands that is not closed: the last that opens a field; -1 if there is none."""
    places = [found + 1 for mark in (b",", b"\n", b"\r") if (found := text.rfind(mark + b'"')) >= 0]
    return max(places, default=0 if text.startswith(b'"') else -1)
