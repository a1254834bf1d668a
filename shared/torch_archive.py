"""Looks at a file of `torch.save` before torch reads it: what it names, and what it claims.

Such a file is a zip archive of plain records and of one pickle, the index. torch's weights-only unpickler executes
nothing that it does not know, but it knows more than weights need: with 60 bytes of pickle that name `bytearray` it
takes as much memory as they ask for. So the index is read here, opcode by opcode, without doing what it says, and
refused if it names anything but storages, tensors and dictionaries; and the archive, if it is not as large as it
claims to be.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
import zlib
from collections.abc import Set
from pathlib import Path

from shared.errors import FileFormatError

INDEX = "data.pkl"
_KNOWN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device|\w+Storage)"
    r"|torch (b?float|complex|u?int)\d+|torch bool|torch\.storage (UntypedStorage|TypedStorage)"
)
_NAMING = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
"""Opcodes that fetch something from a module."""
_BROKEN = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, zlib.error)
"""What reading an archive raises when bytes are not what they were."""


def check(path: Path, records: Set[str] = frozenset()) -> None:
    """Refuses what is not a whole archive of weights and plain values.

    Args:
        path: the file.
        records: dotted names of classes that its index may name, too; the caller's business is what stands for them.

    Raises:
        FileFormatError: the file cannot be read, is damaged, compressed, of torch before 1.6 or no archive at all, or
            names something else.
    """
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise FileFormatError(f"cannot read checkpoint {path}: {error.strerror}") from None
    if magic[:1] == b"\x80":
        raise FileFormatError(
            f"{path} is a plain pickle or a checkpoint of torch before 1.6, which cannot be read safely; "
            "load it where it was made and save it again with a newer torch"
        )
    if magic[:2] != b"PK":
        raise FileFormatError(f"{path} is not a PyTorch checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            index = _index(path, archive)
    except _BROKEN as error:
        raise FileFormatError(f"{path} is damaged or truncated: {error}") from None
    _check_names(path, index, records)


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Records are stored as they are, so together they are smaller than the file; then their checksums are compared."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise FileFormatError(f"{path} was compressed; give the file as torch.save wrote it")
    claimed = sum(max(entry.file_size, entry.compress_size) for entry in entries)
    if claimed > path.stat().st_size:
        raise FileFormatError(f"{path} is damaged or truncated: its records claim {claimed} bytes, more than it has")
    wrong = archive.testzip()
    if wrong is not None:
        raise FileFormatError(f"{path} is damaged or truncated: record {wrong} differs from its checksum")


def _index(path: Path, archive: zipfile.ZipFile) -> bytes:
    found = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == INDEX]
    if len(found) != 1:
        raise FileFormatError(f"{path} is not a PyTorch checkpoint: it holds {len(found)} records {INDEX}")
    return archive.read(found[0])


def _check_names(path: Path, index: bytes, records: Set[str]) -> None:
    strange: set[str] = set()
    try:
        for opcode, argument, _ in pickletools.genops(index):
            if opcode.name in _NAMING:
                module_and_name = str(argument)
                dotted = module_and_name.replace(" ", ".")
                if not (opcode.name == "GLOBAL" and (dotted in records or _KNOWN.fullmatch(module_and_name))):
                    strange.add(dotted)
    except Exception as error:  # an untrusted index can make the parser fail in any way
        raise FileFormatError(f"{path} is not a readable checkpoint: {' '.join(str(error).split())[:200]}") from None
    if strange:
        raise FileFormatError(
            f"{path} names {', '.join(sorted(strange))[:200]}, which no file of weights needs; nothing was executed"
        )
