"""The answers file: what was written is read, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from shared import answers_file
from shared.answers_file import Answers, AnswersHeader
from shared.errors import FileFormatError
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary

GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
TOKENISER = Tokeniser(Vocabulary.of_occupied(np.array([3, 8, 30])), GRID)
HEADER = AnswersHeader(
    revision="feedc0de",
    tokeniser=TOKENISER,
    windows=(2, 3),
    max_window=8,
    max_steps=5,
    store="f00d",
    sampled=("a", "b"),
    compute_dtype="float32",
    device="cpu",
    made_by="test",
)
ANSWERS = Answers(
    history_lengths=np.array([1, 2, 2], np.int32),
    history_tokens=np.array([0, 0, 1, 2, 2], np.int32),
    choices=np.array([1, 0, 1], np.int32),
    list_lengths=np.array([2, 1, 0], np.int32),
    list_tokens=np.array([1, 2, 2], np.int32),
    log_probs=np.array([0, -0.5, -1, -np.inf], np.float16),
)

reads = pytest.mark.parametrize("read", [answers_file.read, answers_file.read_header])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "answers.safetensors"
    answers_file.write(path, HEADER, ANSWERS)
    return path


def changed(**arrays: Any) -> Answers:
    return dataclasses.replace(ANSWERS, **{name: np.array(array) for name, array in arrays.items()})


@pytest.mark.parametrize("tokeniser", [TOKENISER, Tokeniser(Vocabulary.full(GRID.cells), GRID)], ids=["some", "full"])
def test_what_was_written_is_read(path: Path, tokeniser: Tokeniser) -> None:
    written = dataclasses.replace(HEADER, tokeniser=tokeniser)
    answers_file.write(path, written, ANSWERS)
    header, answers = answers_file.read(path)
    for found in (header, answers_file.read_header(path)):
        assert dataclasses.replace(found, tokeniser=tokeniser) == written
        assert found.tokeniser.fingerprint == tokeniser.fingerprint
    for name, array in vars(ANSWERS).items():
        read = getattr(answers, name)
        assert read.dtype == array.dtype and read.tobytes() == array.tobytes(), name
        assert not read.flags.owndata and not read.flags.writeable, "a map of the file"


def test_a_file_of_no_trips_is_one(path: Path) -> None:
    none = Answers(**{name: array[:0] for name, array in vars(ANSWERS).items()})
    answers_file.write(path, HEADER, none)
    assert len(answers_file.read(path)[1]) == 0


def test_rows_of_trips_have_a_position_a_token(path: Path) -> None:
    whole = dataclasses.replace(HEADER, windows=(0,))
    answers_file.write(path, whole, ANSWERS)
    with pytest.raises(FileFormatError, match="do not fit together"):
        answers_file.read(path)
    answers_file.write(path, whole, changed(choices=np.array([1, 2, 2, 1, 0], np.int32)))
    assert answers_file.read(path)[0].is_of_trips


def test_safetensors_itself_reads_it(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    assert tensors["log_probs"].tobytes() == ANSWERS.log_probs.tobytes()


def test_no_flipped_bit_is_taken(path: Path) -> None:
    """In the header, the document, the arrays."""
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"teacher-server answer`"):
            answers_file.read(path)


@reads
def test_half_a_file_is_refused(path: Path, read: Any) -> None:
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match="truncated"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileFormatError, match="does not hold what it should"):
        read(path)


@reads
def test_what_is_no_answers_file_is_refused(tmp_path: Path, tiny_teacher: Path, read: Any) -> None:
    with pytest.raises(FileFormatError, match=r"no answers file at .*; make one with `teacher-server answer`"):
        read(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match="is no answers file"):
        read(tiny_teacher)
    (tmp_path / "text").write_text("answers " * 20)
    with pytest.raises(FileFormatError, match="is no answers file"):
        read(tmp_path / "text")


@reads
def test_another_version_is_refused(path: Path, read: Any) -> None:
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["answers"]) | {"format": "teacher-answers/2"}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"answers": json.dumps(document)})
    with pytest.raises(FileFormatError, match="of this version"):
        read(path)


UNSOUND: dict[str, dict[str, Any]] = {
    "a row without tokens": {"history_lengths": np.array([0, 3, 2], np.int32)},
    "lengths that are too many": {"history_lengths": np.array([1, 2, 3], np.int32)},
    "a token that is no cell": {"history_tokens": np.array([0, 0, 1, 3, 2], np.int32)},
    "a negative token": {"history_tokens": np.array([0, 0, 1, -1, 2], np.int32)},
    "a list that is not there": {"choices": np.array([1, 0, 3], np.int32)},
    "a position too few": {"choices": np.array([1, 0], np.int32)},
    "a list of a negative length": {"list_lengths": np.array([4, 1, -2], np.int32)},
    "a candidate that is no cell": {"list_tokens": np.array([1, 2, 9], np.int32)},
    "an answer too many": {"log_probs": np.zeros(5, np.float16)},
    "a probability above 1": {"log_probs": np.array([0, -0.5, 0.1, 0], np.float16)},
    "no number": {"log_probs": np.array([0, -0.5, np.nan, 0], np.float16)},
    "halves in place of words": {"choices": np.array([1, 0, 1], np.float16)},
}


@pytest.mark.parametrize("arrays", UNSOUND.values(), ids=UNSOUND)
def test_arrays_that_do_not_fit_together_are_refused(path: Path, arrays: dict[str, Any]) -> None:
    """Though their checksum is right: compiled code would read beyond them."""
    answers_file.write(path, HEADER, changed(**arrays))
    with pytest.raises(FileFormatError, match="do not fit together"):
        answers_file.read(path)
