"""Remembered answers between two runs of the daemon: kept whole, and used by the same teacher only."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.row_fakes import same

from teacher_server.answers import saved
from teacher_server.answers.compiled import Kept

KEPT = Kept(
    np.array([3, 4], np.int32),
    np.array([1, 2], np.int32),
    np.array([4, 1, 2, 4, 1, 2, 3], np.int32),
    np.array([1, 2, 3], np.uint16),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers"
    saved.write(path, KEPT, "n1")
    kept = saved.read(path, "n1")
    assert kept is not None and same(kept, KEPT)


def test_parts_are_one_file(tmp_path: Path) -> None:
    """With a pause after each chunk, which is told how much was written."""
    head = Kept(KEPT.key_words[:1], KEPT.value_halves[:1], KEPT.words[:3], KEPT.halves[:1])
    tail = Kept(KEPT.key_words[1:], KEPT.value_halves[1:], KEPT.words[3:], KEPT.halves[1:])
    written: list[int] = []
    saved.write(tmp_path / "parts", [head, tail], "n1", written.append)
    saved.write(tmp_path / "whole", KEPT, "n1")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sum(written) == sum(array.nbytes for array in KEPT)


def test_what_is_no_file_of_answers_is_told_apart(tmp_path: Path) -> None:
    ours, damaged, other, empty = (tmp_path / name for name in ("ours", "damaged", "other", "empty"))
    saved.write(ours, KEPT, "n1")
    damaged.write_bytes(ours.read_bytes()[:-3])
    of_something_else(other)
    empty.touch()
    os.mkfifo(tmp_path / "pipe")
    foreign = [path.name for path in sorted(tmp_path.iterdir()) if saved.is_foreign(path)]
    assert foreign == ["other", "pipe"]
    assert saved.is_foreign(tmp_path) and not saved.is_foreign(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", "pipe"])
def test_what_is_no_file_is_a_cold_start(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    assert saved.read(tmp_path / name, "n1") is None
    assert "is no file; starting without" in caplog.text


def test_what_killed_daemons_have_left_is_removed(tmp_path: Path) -> None:
    """But not what a living one is writing, nor what only looks like it."""
    path, left, living, other = (tmp_path / name for name in ("a", ".a.abcdefgh", ".a.12345678", ".a.b"))
    for file in (left, living, other):
        file.touch()
    with open(living, "rb+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        saved.clear_abandoned(path)
    assert not left.exists() and living.exists() and other.exists()
    during: list[list[str]] = []

    def look(_: int) -> None:
        saved.clear_abandoned(path)
        during.append([name for name in os.listdir(tmp_path) if name.startswith(".a.") and len(name) == 11])

    saved.write(path, KEPT, "n1", look)
    assert all(len(names) == 1 for names in during)
    assert saved.read(path, "n1") is not None


def test_nothing_is_kept_as_nothing(tmp_path: Path) -> None:
    nothing = Kept(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint16))
    saved.write(tmp_path / "answers", nothing, "n1")
    kept = saved.read(tmp_path / "answers", "n1")
    assert kept is not None and same(kept, nothing)


def test_answers_of_another_teacher_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved.write(tmp_path / "answers", KEPT, "n1")
    assert saved.read(tmp_path / "answers", "n2") is None
    assert "other weights or another device" in caplog.text


def test_no_file_is_a_cold_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert saved.read(tmp_path / "answers", "n1") is None
    assert "yet" in caplog.text


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def of_something_else(path: Path) -> None:
    safetensors.numpy.save_file({"words": np.zeros(1)}, path)


def of_bytes(path: Path) -> None:
    path.write_bytes(b"not at all")


def of_other_types(path: Path) -> None:
    arrays = {name: array.astype(np.float64) for name, array in KEPT._asdict().items()}
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(arrays, path, metadata=metadata)


@pytest.mark.parametrize("spoil", [damaged, truncated, of_something_else, of_bytes, of_other_types])
def test_a_file_that_is_not_whole_is_a_cold_start_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: object
) -> None:
    path = tmp_path / "answers"
    saved.write(path, KEPT, "n1")
    spoil(path)  # type: ignore[operator]
    assert saved.read(path, "n1") is None
    assert "starting without them" in caplog.text
