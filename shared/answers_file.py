"""The answers file: everything that training on a store asks a teacher, with the answers, so that it needs no daemon.

    row       a history of cells, with the candidates' cells of its scored positions
              windows: SOT and the last cells, at most as many as a window has; scored is the cell after them
              whole history: a trip; scored is the cell after each of its tokens
    answers   float16 log-probabilities of each position's candidates, bit for bit as the teacher gave them

Every row is there once, whichever trips it is from, and so is every list of candidates. One safetensors file: a JSON
document in the header's metadata under `answers`, and flat arrays that are read through a memory map, which processes
on a machine share. A SHA-256 of all of it is compared when the file is opened; nothing in it can be executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from shared import files
from shared.address import answers_path
from shared.arrays import Float16, Int32
from shared.errors import FileFormatError
from shared.vocab import Tokeniser

FORMAT = "teacher-answers/1"
WHOLE_HISTORY = 0
"""In place of a window."""
AGAIN = "write it again with `teacher-server answer`"
_OCCUPIED = "vocabulary.occupied_cells"
_DTYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
"""What an untrusted header makes Python raise."""
_LENGTH_BYTES = 8
"""Before the header of a safetensors file: how long it is."""


@dataclasses.dataclass(frozen=True)
class AnswersHeader:
    """What an answers file says of itself.

    Attributes:
        revision: of the teacher's weights.
        tokeniser: grid and vocabulary of teacher and store.
        windows: cells of history after SOT, each of which may be trained with; (0,) for the whole history.
        max_window: the most that the teacher can see.
        max_steps: steps that were kept of longer trips, the last ones; 0 for all.
        store: fingerprint of the store whose training and validation trips were asked about.
        sampled: directories of sampled trips that were asked about besides, as they were given.
        compute_dtype, device: how the teacher computed.
        made_by: which version wrote it.
    """

    revision: str
    tokeniser: Tokeniser
    windows: tuple[int, ...]
    max_window: int
    max_steps: int
    store: str
    sampled: tuple[str, ...]
    compute_dtype: str
    device: str
    made_by: str

    @property
    def is_of_trips(self) -> bool:
        """Whether a row is a trip rather than a window."""
        return self.windows == (WHOLE_HISTORY,)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """R rows with H tokens and P scored positions, L distinct lists of T candidates, K answers.

    Attributes:
        history_lengths: int32 [R], all above 0.
        history_tokens: int32 [H], rows back to back, without SOT.
        choices: int32 [P], list of candidates of each scored position; P = R, or H if rows are trips.
        list_lengths: int32 [L].
        list_tokens: int32 [T], lists back to back.
        log_probs: float16 [K], positions back to back.
    """

    history_lengths: Int32
    history_tokens: Int32
    choices: Int32
    list_lengths: Int32
    list_tokens: Int32
    log_probs: Float16

    def __len__(self) -> int:
        return len(self.history_lengths)


_NAMES = tuple(field.name for field in dataclasses.fields(Answers))


def write(path: Path, header: AnswersHeader, answers: Answers) -> None:
    """Writes an answers file atomically."""
    arrays = {name: np.ascontiguousarray(getattr(answers, name)) for name in _NAMES}
    occupied = header.tokeniser.vocabulary.occupied
    if occupied is not None:
        arrays[_OCCUPIED] = np.ascontiguousarray(occupied, np.int32)
    values = {f.name: getattr(header, f.name) for f in dataclasses.fields(header) if f.name != "tokeniser"}
    document = {"format": FORMAT, **values, **header.tokeniser.to_dict()}
    document["checksum"] = _checksum(document, arrays)
    with files.atomic_path(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={"answers": json.dumps(document)})


def check_address(teacher: str) -> None:
    """Raises `FileFormatError` if a teacher's address names an answers file that is not there, or is none."""
    if (path := answers_path(teacher)) is not None:
        read_header(path)


def read_header(path: Path) -> AnswersHeader:
    """What a file says of itself; the answers are neither read nor compared with the checksum.

    Raises:
        FileFormatError: it is missing, truncated or no answers file.
    """
    document, arrays = _open(path)
    return _header(path, document, arrays)


def read(path: Path) -> tuple[AnswersHeader, Answers]:
    """An answers file, whose arrays are a memory map of it.

    Raises:
        FileFormatError: as `read_header`; or it is damaged.
    """
    document, arrays = _open(path)
    if document.get("checksum") != _checksum(document, arrays):
        raise FileFormatError(f"{path} is damaged: its checksum differs; {AGAIN}")
    header = _header(path, document, arrays)
    answers = Answers(**{name: arrays[name] for name in _NAMES})
    if not _is_sound(header, answers):
        raise FileFormatError(f"{path} is damaged: its arrays do not fit together; {AGAIN}")
    return header, answers


def _open(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The document and all arrays of a file, which have the names, types and places that they should."""
    if not path.is_file():
        raise FileFormatError(f"no answers file at {path}; make one with `teacher-server answer`")
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        (size,) = struct.unpack_from("<Q", data)
        start = _LENGTH_BYTES + size
        layout = json.loads(data[_LENGTH_BYTES:start].decode())
        about = layout.pop("__metadata__")
        if "lmtad" in about:
            raise FileFormatError(
                f"{path} is no answers file but a teacher; serve it with `teacher-server serve`, or write its answers "
                "with `teacher-server answer`"
            )
        document = json.loads(about["answers"])
        arrays = {name: _array(data, start, place) for name, place in layout.items()}
        is_whole = len(data) == start + sum(array.nbytes for array in arrays.values())
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{path} is no answers file, or is truncated or damaged ({reason}); {AGAIN}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FileFormatError(f"{path} is no answers file of this version ({FORMAT}); {AGAIN}")
    if not is_whole or arrays.keys() - {_OCCUPIED} != set(_NAMES):
        raise FileFormatError(f"{path} is truncated or damaged: it does not hold what it should; {AGAIN}")
    return document, arrays


def _array(data: mmap.mmap, start: int, place: dict[str, Any]) -> npt.NDArray[Any]:
    """An array as the header of a safetensors file places it; raises what `_open` expects if there is none."""
    dtype, (first, last) = _DTYPES[place["dtype"]], place["data_offsets"]
    (count,) = place["shape"]
    if not 0 <= first <= last or last - first != count * dtype.itemsize:
        raise ValueError(f"an array of {count} values from byte {first} to {last}")
    if not count:
        return np.zeros(0, dtype)
    array: npt.NDArray[Any] = np.frombuffer(data, dtype, count, start + first)
    if not array.flags.aligned:
        raise ValueError("an array that is not aligned")
    return array


def _header(path: Path, document: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> AnswersHeader:
    try:
        tokeniser = Tokeniser.from_dict(document, arrays.get(_OCCUPIED))
        texts = {name: str(document[name]) for name in ("revision", "store", "compute_dtype", "device", "made_by")}
        numbers = {name: int(document[name]) for name in ("max_window", "max_steps")}
        windows, sampled = tuple(map(int, document["windows"])), tuple(map(str, document["sampled"]))
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}; {AGAIN}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: the header is damaged ({error}); {AGAIN}") from None
    return AnswersHeader(
        revision=texts["revision"],
        tokeniser=tokeniser,
        windows=windows,
        max_window=numbers["max_window"],
        max_steps=numbers["max_steps"],
        store=texts["store"],
        sampled=sampled,
        compute_dtype=texts["compute_dtype"],
        device=texts["device"],
        made_by=texts["made_by"],
    )


def _checksum(document: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> str:
    """Hexadecimal SHA-256 of the document without its checksum, and of the arrays with their names."""
    plain = {name: value for name, value in document.items() if name != "checksum"}
    sha = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(arrays):
        sha.update(f" {name} {arrays[name].dtype.str} {len(arrays[name])} ".encode())
        sha.update(arrays[name].data)
    return sha.hexdigest()


def _is_sound(header: AnswersHeader, answers: Answers) -> bool:
    """Whether the arrays fit together: compiled code indexes them and looks no more."""
    cells = header.tokeniser.vocabulary.cells
    if any(array.dtype != (np.float16 if name == "log_probs" else np.int32) for name, array in vars(answers).items()):
        return False
    lists = len(answers.list_lengths)
    return (
        (header.is_of_trips or min(header.windows, default=0) > 0)
        and _within(answers.history_lengths, 1, 2**31)
        and int(answers.history_lengths.sum(dtype=np.int64)) == len(answers.history_tokens)
        and _within(answers.history_tokens, 0, cells)
        and len(answers.choices) == (len(answers.history_tokens) if header.is_of_trips else len(answers))
        and _within(answers.choices, 0, lists)
        and _within(answers.list_lengths, 0, 2**31)
        and int(answers.list_lengths.sum(dtype=np.int64)) == len(answers.list_tokens)
        and _within(answers.list_tokens, 0, cells)
        and int(answers.list_lengths[answers.choices].sum(dtype=np.int64)) == len(answers.log_probs)
        and bool(np.all(answers.log_probs <= 0))  # also catches NaN
    )


def _within(values: Int32, low: int, high: int) -> bool:
    return not len(values) or (int(values.min()) >= low and int(values.max()) < high)
