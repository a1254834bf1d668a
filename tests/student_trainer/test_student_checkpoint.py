"""Checkpoints: atomic, exact, and never executed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from shared.errors import FileFormatError
from student_trainer.train import checkpoint as checkpoints
from student_trainer.train.checkpoint import Checkpoint, Progress


def sample() -> Checkpoint:
    progress = Progress(step=7, bad_steps=1, best_accuracy=0.5, best_epoch=1, history=[{"epoch": 1, "accuracy": 0.5}])
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
    with pytest.raises(FileFormatError, match="refused without executing"):
        checkpoints.load(path)
    assert not canary.exists()


@pytest.mark.parametrize("keep", [0, 10, 200, -50])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, sample())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"last\.pt"):
        checkpoints.load(path)


def test_missing_and_foreign(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no weights"):
        checkpoints.load(tmp_path / "none.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "bare.pt")
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "bare.pt")
    torch.save(torch.ones(1), tmp_path / "tensor.pt")
    with pytest.raises(FileFormatError, match="Tensor"):
        checkpoints.load(tmp_path / "tensor.pt")
