"""The teacher file: what was written is read, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared import teacher_file
from shared.errors import FileFormatError
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary

GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
FULL = Tokeniser(Vocabulary.full(GRID.cells), GRID)
OCCUPIED = Tokeniser(Vocabulary.of_occupied(np.array([3, 8, 30])), GRID)
WITHOUT_GRID = Tokeniser(Vocabulary(3, 3, 5, 9), None)
ARCHITECTURE = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 8, "vocab_size": 6, "bias": False}

reads = pytest.mark.parametrize("read", [teacher_file.read, teacher_file.read_header])


def weights() -> teacher_file.Weights:
    random = np.random.default_rng(0)
    return {
        "b.weight": random.normal(size=(3, 4)).astype(np.float32),
        "a.weight": random.normal(size=(4, 3)).astype(np.float32).T,  # not contiguous
        "half": random.normal(size=5).astype(np.float16),
    }


def write(path: Path, tokeniser: Tokeniser = OCCUPIED, **changes: Any) -> teacher_file.TeacherHeader:
    values: dict[str, Any] = {"weights": weights(), "architecture": ARCHITECTURE, "provenance": {"made_by": "test"}}
    return teacher_file.write(path, tokeniser=tokeniser, **values | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "teacher.safetensors"


def rewrite(path: Path, change: Any) -> None:
    """Changes the tensors and the document of a file, which stays a whole safetensors file."""
    with safetensors.safe_open(path, framework="np") as file:
        document = json.loads(file.metadata()["lmtad"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    document = change(document, tensors) or document
    safetensors.numpy.save_file(tensors, path, metadata={"lmtad": json.dumps(document)})


@pytest.mark.parametrize("tokeniser", [FULL, OCCUPIED, WITHOUT_GRID], ids=["full", "occupied", "without a grid"])
def test_what_was_written_is_read(path: Path, tokeniser: Tokeniser) -> None:
    written = write(path, tokeniser)
    header, read = teacher_file.read(path)
    assert list(read) == sorted(weights())
    for name, array in weights().items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    for again in (header, teacher_file.read_header(path)):
        assert again.architecture == ARCHITECTURE
        assert again.provenance == {"made_by": "test"}
        assert again.revision == written.revision
        assert again.tokeniser.fingerprint == tokeniser.fingerprint
    occupied = header.tokeniser.vocabulary.occupied
    assert (occupied is None) == (tokeniser.vocabulary.occupied is None)
    if occupied is not None:
        np.testing.assert_array_equal(occupied, tokeniser.vocabulary.occupied)


def test_the_revision_is_that_of_the_content(path: Path) -> None:
    revision = write(path).revision
    assert write(path.with_name("again"), provenance={"made_by": "another"}).revision == revision
    backwards = dict(reversed(weights().items()))
    assert write(path.with_name("order"), weights=backwards).revision == revision
    assert revision == "31b058770eb947b8", "files that exist carry it: another value would make them look damaged"


def test_anything_that_changes_an_answer_changes_the_revision(path: Path) -> None:
    nudged, renamed, retyped, reshaped = weights(), weights(), weights(), weights()
    nudged["half"][2] = np.nextafter(nudged["half"][2], np.float16(9))
    renamed["halves"] = renamed.pop("half")
    retyped["half"] = retyped["half"].view(np.int16)
    reshaped["b.weight"] = reshaped["b.weight"].reshape(4, 3)
    revisions = [write(path).revision]
    revisions += [write(path, weights=changed).revision for changed in (nudged, renamed, retyped, reshaped)]
    revisions += [write(path, architecture=ARCHITECTURE | {"n_head": 1}).revision]
    revisions += [write(path, tokeniser).revision for tokeniser in (FULL, WITHOUT_GRID)]
    moved = GRID.model_copy(update={"min_lat": 36.99})
    revisions += [write(path, Tokeniser(OCCUPIED.vocabulary, moved)).revision]
    assert len(set(revisions)) == len(revisions)


@reads
def test_a_truncated_file_is_refused_at_any_length(path: Path, read: Any) -> None:
    write(path)
    data = path.read_bytes()
    for length in [*range(64), *range(64, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError, match=r"teacher\.safetensors"):
            read(path)


@given(data=st.binary(max_size=200))
@example(data=(8).to_bytes(8, "little") + b"{}      ")
@example(data=(2**62).to_bytes(8, "little") + b"{}")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (teacher_file.read, teacher_file.read_header):
        with pytest.raises(FileFormatError, match=r"teacher\.safetensors"):
            read(path)


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_is_found_or_harmless(path: Path, place: int, flip: int) -> None:
    """Harmless: in the provenance, in the padding, or in a value's spelling."""
    expected = write(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    try:
        header, read = teacher_file.read(path)
    except FileFormatError:
        return
    assert header.revision == expected.revision
    assert header.architecture == ARCHITECTURE
    assert header.tokeniser.fingerprint == OCCUPIED.fingerprint
    for name, array in weights().items():
        np.testing.assert_array_equal(read[name], array)


@reads
def test_a_foreign_safetensors_file_is_refused(path: Path, read: Any) -> None:
    for metadata in (None, {"format": "pt"}, {"lmtad": "3"}, {"lmtad": "{"}, {"lmtad": '{"format": "other/1"}'}):
        safetensors.numpy.save_file(weights(), path, metadata=metadata)
        with pytest.raises(FileFormatError, match="is not a teacher file"):
            read(path)


@reads
@pytest.mark.parametrize("name", ["architecture", "revision", "provenance", "vocabulary", "grid"])
def test_a_header_that_lacks_a_value_is_refused(path: Path, read: Any, name: str) -> None:
    write(path)
    rewrite(path, lambda document, _: {key: value for key, value in document.items() if key != name})
    with pytest.raises(FileFormatError, match=rf"teacher\.safetensors: .*{name}"):
        read(path)


@reads
def test_another_version_is_refused(path: Path, read: Any) -> None:
    write(path)
    rewrite(path, lambda document, _: document | {"format": "lmtad-teacher/2"})
    with pytest.raises(FileFormatError, match="lmtad-teacher/1"):
        read(path)


@reads
def test_a_missing_table_of_cells_is_noticed(path: Path, read: Any) -> None:
    write(path)

    def drop(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        del tensors["vocabulary.occupied_cells"]

    rewrite(path, drop)
    with pytest.raises(FileFormatError, match="table of cells"):
        read(path)


def nudge(name: str) -> Any:
    def change(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] += 1

    return change


@pytest.mark.parametrize("name", ["b.weight", "half", "vocabulary.occupied_cells"])
def test_damaged_tensors_do_not_match_the_revision(path: Path, name: str) -> None:
    write(path)
    rewrite(path, nudge(name))
    with pytest.raises(FileFormatError, match="do not match the revision"):
        teacher_file.read(path)


def test_a_changed_architecture_does_not_match_the_revision(path: Path) -> None:
    write(path)
    rewrite(path, lambda document, _: document | {"architecture": ARCHITECTURE | {"n_head": 4}})
    with pytest.raises(FileFormatError, match="do not match the revision"):
        teacher_file.read(path)


@reads
def test_a_missing_file_and_a_directory_are_named(tmp_path: Path, read: Any) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileFormatError, match=f"no teacher file at {place}"):
            read(place)


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = write(path).revision

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        write(path, FULL)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert teacher_file.read(path)[0].revision == revision
