"""Checkpoints: atomic, exact, checked, and never executed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.plain_reader import read_plainly
from support.runs import assert_same_bits

from shared.errors import FileFormatError
from shared.training import generations
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint, Progress


def sample(step: int = 7) -> Checkpoint:
    progress = Progress(
        step=step, bad_steps=1, best_accuracy=0.5, best_epoch=1, history=[{"epoch": 1, "accuracy": 0.5}]
    )
    weights = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    random_state = {"cpu": torch.get_rng_state()}
    return Checkpoint(
        weights, {"state": {}}, {}, progress, {"seed": 1}, "abc", 2.0, 0.5, "rev", {"loss": (0.1, 3)}, random_state, "2"
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a" / "last.pt"
    checkpoints.save(path, sample())
    loaded = checkpoints.load(path)
    assert torch.equal(loaded.model["w"], sample().model["w"])
    assert loaded.progress == sample().progress
    assert [f.name for f in path.parent.iterdir()] == ["last.pt"]


def test_one_that_was_saved_on_cuda_is_read_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, the optimizer's state and the generators' come to the host, whatever device the file names."""
    saved = dataclasses.replace(sample(), optimizer={"state": {0: {"exp_avg": torch.ones(2), "step": torch.ones(())}}})
    saved.random_state["cuda"] = torch.zeros(16, dtype=torch.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        checkpoints.save(tmp_path / "last.pt", saved)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "last.pt", weights_only=True)
    loaded = checkpoints.load(tmp_path / "last.pt")
    assert loaded.model["w"].device == loaded.optimizer["state"][0]["exp_avg"].device == torch.device("cpu")
    for name in ("model", "optimizer", "random_state"):
        assert_same_bits(getattr(loaded, name), getattr(saved, name))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, sample())
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoints.save_tensors(path, {"w": lambda: None})
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


class Bomb:
    """Pickles as a call that makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


def test_hostile_pickle_is_refused_unexecuted(tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"format": checkpoints.FORMAT, "model": Bomb(canary)}, path)
    with pytest.raises(FileFormatError, match="nothing was executed"):
        checkpoints.load(path)
    assert not canary.exists()


@pytest.mark.parametrize("keep", [0, 10, 200, -50])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, sample())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"last\.pt"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progress": {"step": "3"}}, r"progress\.step: Input should be a valid integer"),
        ({"progress": {"stop": 3}}, "unexpected keyword argument 'stop'"),
        ({"progress": 3}, "must be a mapping"),
        ({"model": {"w": [1.0]}}, r"model\.w: Input should be an instance of Tensor"),
        ({"mu": None}, "mu: Input should be a valid number"),
        ({"sums": {"loss": (1.0,)}}, r"sums\.loss\.1: Field required"),
        ({"odd": 1}, "unexpected keyword argument 'odd'"),
    ],
)
def test_content_of_other_types_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """As a file that somebody has made, and not `save`."""
    path = tmp_path / "last.pt"
    checkpoints.save(path, sample())
    torch.save({**torch.load(path), **change}, path)
    with pytest.raises(FileFormatError, match=rf"last\.pt is damaged: .*{message}"):
        checkpoints.load(path)


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    """Two numbers of pickle make 16 TiB of shape over one number of data."""
    path = tmp_path / "w.pth"
    torch.save({"deep": [{"w": torch.ones(1).expand(2**42)}]}, path)
    assert path.stat().st_size < 2000
    with pytest.raises(FileFormatError, match=r"claims the shape .* larger than its data"):
        checkpoints.load_tensors(path)


def test_missing_and_foreign(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no weights"):
        checkpoints.load(tmp_path / "none.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "bare.pt")
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "bare.pt")
    torch.save(torch.ones(1), tmp_path / "tensor.pt")
    with pytest.raises(FileFormatError, match="Tensor"):
        checkpoints.load(tmp_path / "tensor.pt")


def steps_of(folder: Path) -> dict[str, int]:
    return {path.name: checkpoints.load(path).progress.step for path in sorted(folder.iterdir())}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    for step in range(5):
        checkpoints.save(last, sample(step), keep=3)
    checkpoints.save(tmp_path / "best.pt", sample(1))
    assert steps_of(tmp_path) == {"last.pt": 4, "last.1.pt": 3, "last.2.pt": 2, "best.pt": 1}
    checkpoints.save(last, sample(5), keep=2)
    assert steps_of(tmp_path) == {"last.pt": 5, "last.1.pt": 4, "best.pt": 1}
    checkpoints.save(last, sample(6))
    assert steps_of(tmp_path) == {"last.pt": 6, "best.pt": 1}


def test_without_links_the_one_before_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    for step in range(3):
        checkpoints.save(tmp_path / "last.pt", sample(step), keep=2)
    assert steps_of(tmp_path) == {"last.pt": 2, "last.1.pt": 1}


@pytest.mark.parametrize("stop_at", ["replace last.1.pt", "unlink", "link", "replace last.pt"])
def test_there_is_a_whole_one_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str) -> None:
    """Stopped before each change of the directory; afterwards none is there twice."""
    last = tmp_path / "last.pt"
    for step in range(4):
        checkpoints.save(last, sample(step), keep=3)
    with monkeypatch.context() as patch:
        call, _, name = stop_at.partition(" ")
        owner: Any = Path if call == "unlink" else os
        plain = getattr(owner, call)

        def stopped(*arguments: Any, **named: Any) -> Any:
            if call == "replace" and Path(arguments[1 if name == "last.pt" else 0]).name != name:
                return plain(*arguments, **named)
            if call == "unlink" and Path(arguments[0]).name != "last.1.pt":
                return plain(*arguments, **named)
            raise KeyboardInterrupt

        patch.setattr(owner, call, stopped)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(last, sample(4), keep=3)
    newest = checkpoints.load_newest(last)
    assert newest is not None and newest.progress.step == 3
    checkpoints.save(last, sample(4), keep=3)
    steps = steps_of(tmp_path)
    assert steps["last.pt"] == 4 and steps["last.1.pt"] == 3 and steps["last.2.pt"] < 3


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "last.pt", sample(1), keep=2)
    (tmp_path / ".last.pt.x1y2").write_bytes(b"half")
    generations.remove_halves(tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.unlink()  # the name before may be a second one of this file
    path.write_bytes(content)


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = tmp_path / "last.pt"
    assert checkpoints.load_newest(last) is None
    for step in range(3):
        checkpoints.save(last, sample(step), keep=3)
    place = last.read_bytes().find(sample().model["w"].numpy().tobytes())
    flip(last, place + 5, 0x01)
    found = checkpoints.load_newest(last)
    assert found is not None and found.progress.step == 1
    assert f"{last} is damaged or truncated: record " in caplog.text
    assert f"differs from its checksum; going on from {tmp_path / 'last.1.pt'}, 1 steps done" in caplog.text
    (tmp_path / "last.1.pt").write_bytes(b"")
    found = checkpoints.load_newest(last)
    assert found is not None and found.progress.step == 0
    flip(tmp_path / "last.2.pt", place)
    with pytest.raises(FileFormatError, match=r"no checkpoint can be read: .*last\.pt.*last\.1\.pt.*last\.2\.pt"):
        checkpoints.load_newest(last)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "last.pt"
    checkpoints.save(path, sample())
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), length=st.integers(1, 40))
def test_flipped_bytes_are_refused_or_change_nothing(
    tmp_path: Path, written: bytes, place: float, bits: int, length: int
) -> None:
    """Anywhere in the file: records, their names and sizes, the archive's index; padding may hold anything."""
    start = int(place * len(written))
    content = bytearray(written)
    content[start : start + length] = bytes(byte ^ bits for byte in content[start : start + length])
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    try:
        found = checkpoints.load(path)
    except FileFormatError:
        return
    for name, value in vars(sample()).items():
        if name != "random_state":
            assert_same_bits(getattr(found, name), value, name)


def test_every_flipped_byte_of_a_tensor_is_seen(tmp_path: Path, written: bytes) -> None:
    weights = sample().model["w"].numpy().tobytes()
    start = written.find(weights)
    for place in range(start, start + len(weights)):
        path = tmp_path / "last.pt"
        path.write_bytes(written)
        flip(path, place, 0x10)
        with pytest.raises(FileFormatError, match="differs from its checksum"):
            checkpoints.load(path)


def as_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


def test_the_file_is_read_without_torch(tmp_path: Path) -> None:
    """Its format is torch's own of any version since 1.6: plain records, and an index of plain values and tensors."""
    path = tmp_path / "last.pt"
    checkpoints.save(path, sample())
    found = read_plainly(path)
    assert found.pop("format") == checkpoints.FORMAT
    expected = as_arrays(vars(sample()) | {"progress": vars(sample().progress)})
    np.testing.assert_array_equal(found["model"].pop("w"), expected["model"].pop("w"))
    random_state = found.pop("random_state")["cpu"]
    assert random_state.dtype == np.uint8 and len(random_state) == len(expected.pop("random_state")["cpu"])
    assert found == expected
    code = (
        "import sys; sys.path[:0] = ['tests']; from support.plain_reader import read_plainly; from pathlib import Path"
    )
    code += "; read_plainly(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=REPOSITORY)
