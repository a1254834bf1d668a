"""The answers that a daemon remembers, in a file between its runs: safetensors, nothing in it can be executed.

They are good for one teacher on one kind of device, so the file names the scorer's `numerics`. It is written in parts,
as they were copied, so that nothing is copied twice, and as slowly as its disk and the daemon beside it like.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors

from shared import files
from shared.errors import ReportableError
from teacher_server.answers.compiled import Kept

log = logging.getLogger(__name__)

KIND = "teacher-answers"
FORMAT = f"{KIND}/1"
HEAD_BYTES = 2**16
"""Where such a file says what it is."""
CHUNK_BYTES = 2**22
"""What is written between two pauses."""
RANDOM_LENGTH = 8
"""Of what `tempfile` makes up."""
_DTYPES = {"key_words": np.int32, "value_halves": np.int32, "words": np.int32, "halves": np.uint16}
_NAMES = {np.int32: "I32", np.uint16: "U16"}
"""What safetensors calls the types."""


def write(path: Path, parts: Kept | Sequence[Kept], numerics: str, pause: Callable[[int], None] | None = None) -> None:
    """Writes the file atomically.

    Args:
        path: where to.
        parts: the rows, all at once or one part after the other.
        numerics: of the scorer that has computed them.
        pause: called after some bytes were written, with their number.

    Raises:
        ReportableError: the disk is full, or the directory cannot be written.
    """
    parts = [parts] if isinstance(parts, Kept) else parts
    header = _header(parts, {"format": FORMAT, "numerics": numerics, "digest": _digest(parts)})
    with files.atomic_path(path) as temporary, open(temporary, "wb") as stream:
        _mark_in_use(stream.fileno())
        stream.write(len(header).to_bytes(8, "little") + header)
        for data in _chunks(parts):
            stream.write(data)
            if pause is not None:
                pause(len(data))


def read(path: Path, numerics: str) -> Kept | None:
    """The answers for a scorer; None if there are none that it can use, and why is logged: it starts cold then."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a directory that cannot be entered has a reason, too
            log.warning("%s is no file; starting without remembered answers", path)
            return None
        with safetensors.safe_open(path, framework="np") as file:
            document = json.loads((file.metadata() or {}).get("answers", "null"))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                log.warning("%s holds no remembered answers (%s); starting without them", path, FORMAT)
                return None
            if document.get("numerics") != numerics:
                log.warning("the answers in %s are of other weights or another device; starting without them", path)
                return None
            arrays = {name: file.get_tensor(name) for name in _DTYPES}
    except FileNotFoundError:
        log.info("no remembered answers at %s yet", path)
        return None
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError, TypeError) as error:
        log.warning("the remembered answers in %s cannot be read (%s); starting without them", path, error)
        return None
    kept = Kept(**arrays)
    has_types = all(arrays[name].dtype == dtype and arrays[name].ndim == 1 for name, dtype in _DTYPES.items())
    if not has_types or document.get("digest") != _digest([kept]):
        log.warning("the remembered answers in %s are damaged; starting without them", path)
        return None
    return kept


def is_foreign(path: Path) -> bool:
    """Whether something is there that was never a file of remembered answers, damaged or not."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False  # writing says what is wrong
    return bool(head) and KIND.encode() not in head


def clear_abandoned(path: Path) -> None:
    """Removes what daemons that were killed while they wrote have left beside the file."""
    try:
        real = files.destination(path)
        beside = list(real.parent.iterdir())
    except (OSError, ReportableError):
        return  # writing says what is wrong
    prefix = f".{real.name}."
    for left in beside:
        if not left.name.startswith(prefix) or len(left.name) != len(prefix) + RANDOM_LENGTH:
            continue
        with contextlib.suppress(OSError), open(left, "rb+") as stream:  # somebody writes it
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
            log.info("removed %s, which a daemon that was killed has left", left)


def _mark_in_use(descriptor: int) -> None:
    """For as long as the descriptor is open; where the file system has no locks, nothing is marked."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _header(parts: Sequence[Kept], document: dict[str, str]) -> bytes:
    """Of a safetensors file with the arrays of the parts back to back."""
    entries: dict[str, object] = {"__metadata__": {"answers": json.dumps(document)}}
    end = 0
    for name, dtype in _DTYPES.items():
        length = sum(len(getattr(part, name)) for part in parts)
        begin, end = end, end + length * np.dtype(dtype).itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": [length], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _chunks(parts: Sequence[Kept]) -> Iterator[memoryview]:
    """The bytes behind the header."""
    for name in _DTYPES:
        for part in parts:
            data = _bytes_of(getattr(part, name))
            for i in range(0, len(data), CHUNK_BYTES):
                yield data[i : i + CHUNK_BYTES]


def _bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    return array.view(np.uint8).data


def _digest(parts: Sequence[Kept]) -> str:
    """As `files.digest` of names and arrays."""
    sha = hashlib.sha256()
    for name in Kept._fields:
        arrays = [_bytes_of(getattr(part, name)) for part in parts]
        for size, pieces in ((len(name), [name.encode()]), (sum(map(len, arrays)), arrays)):
            sha.update(size.to_bytes(8, "little"))
            for piece in pieces:
                sha.update(piece)
    return sha.hexdigest()
