"""The jobs on the accelerator: they start, they resume, what they write is read elsewhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from support.accelerator import session_of, settings_of
from support.random_city import write_random_store

from benchmarks.gpu import teachers
from shared import teacher_file
from shared.store import Store
from student_trainer.predict import run as predict
from student_trainer.predict.config import PredictConfig
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train import run as training
from student_trainer.train.config import TrainConfig
from student_trainer.train.session import Session

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def interrupted(settings: TrainConfig, store: Store, at: int) -> Session:
    """A run that was stopped before a step, with a checkpoint."""
    session = session_of(settings, store)
    make_step = session.trainer.train_step

    def interrupt(step: Any) -> None:
        if step.plan.number == at:
            raise KeyboardInterrupt
        make_step(step)

    session.trainer.train_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        session.train()
    return session


def weights_in(out: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(out / "checkpoints" / "last.pt").model


def test_train_starts_by_itself(
    accelerator: torch.device, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.run(settings_of(store, tmp_path / "run", "auto")) == 0
    assert json.loads(capsys.readouterr().out)["bad_steps"] == 0


@pytest.mark.parametrize("amp", ["float16", "bfloat16"])
def test_train_in_mixed_precision(accelerator: torch.device, store: Store, tmp_path: Path, amp: str) -> None:
    assert training.run(settings_of(store, tmp_path / "run", accelerator, runtime={"amp": amp})) == 0


@pytest.mark.parametrize("way", ["here to here", "cpu to here", "here to cpu", "float32 to float16"])
def test_a_run_goes_on_elsewhere(accelerator: torch.device, store: Store, tmp_path: Path, way: str) -> None:
    first, second = CPU if way == "cpu to here" else accelerator, CPU if way == "here to cpu" else accelerator
    amp = "float16" if way == "float32 to float16" else "off"
    out = tmp_path / "run"
    interrupted(settings_of(store, out, first, runtime={"amp": "off"}), store, 5)
    settings = settings_of(store, out, second, runtime={"amp": amp}, resume=True)
    assert training.run(settings) == 0
    assert json.loads((out / "summary.json").read_text())["bad_steps"] == 0
    whole = tmp_path / "whole"
    assert training.run(settings_of(store, whole, CPU, runtime={"amp": "off"})) == 0
    ours, theirs = weights_in(out), weights_in(whole)
    if amp == "off":
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), tensor, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("runtime", [{"amp": "off"}, {"amp": "bfloat16"}, {"amp": "off", "graphs": "off"}], ids=str)
def test_resumed_equals_undisturbed_to_the_bit(
    accelerator: torch.device, store: Store, tmp_path: Path, runtime: dict[str, str]
) -> None:
    assert training.run(settings_of(store, tmp_path / "whole", accelerator, runtime=runtime)) == 0
    interrupted(settings_of(store, tmp_path / "cut", accelerator, runtime=runtime), store, 5)
    assert training.run(settings_of(store, tmp_path / "cut", accelerator, runtime=runtime, resume=True)) == 0
    whole, cut = weights_in(tmp_path / "whole"), weights_in(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_what_was_trained_here_is_predicted_with_anywhere(
    accelerator: torch.device, store: Store, tmp_path: Path
) -> None:
    assert training.run(settings_of(store, tmp_path / "run", accelerator)) == 0
    arrays = {}
    for place in (str(accelerator), "cpu"):
        out = tmp_path / f"{place.replace(':', '')}.npz"
        weights = tmp_path / "run" / "checkpoints" / "best.pt"
        assert predict.run(PredictConfig(data=store.path, weights=weights, out=out, device=place)) == 0
        with np.load(out) as file:
            arrays[place] = dict(file)
    here, there = arrays[str(accelerator)], arrays["cpu"]
    for name in ("trip", "step", "road", "label", "candidate_offsets"):
        np.testing.assert_array_equal(here[name], there[name])
    for name in ("logit", "log1p_seconds_standardised"):
        np.testing.assert_allclose(here[name], there[name], atol=1e-4)


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
def test_a_teacher_is_pretrained(accelerator: torch.device, store: Store, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "teacher"
    teachers.pretrained(store, out, accelerator, dtype, steps=20)
    header, weights = teacher_file.read(out)
    assert header.provenance["steps"] == 20
    assert all(np.isfinite(array).all() for array in weights.values())


def test_a_student_learns_from_a_daemon_here(
    accelerator: torch.device, store: Store, tmp_path: Path, running_teacher: TeacherStarter
) -> None:
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with running_teacher(tmp_path / "teacher", f"engine.device={accelerator}") as server:
        settings = settings_of(store, tmp_path / "run", "auto", teacher=server.address)
        assert training.run(settings) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_steps"] == 0 and summary["last"]["kl"] >= 0


COLLECTIVES = """
import torch
from shared.training.torch_ranks import ProcessRanks
import torch.distributed as dist
device = torch.device({device!r})
if device.type == "cuda":
    torch.cuda.set_device(device)
ranks = ProcessRanks(60)
tensor = torch.arange(5.0, device=device)
ranks.sum_(tensor)
print(tensor.tolist(), ranks.gather("x"), ranks.broadcast(3))
dist.destroy_process_group()
"""


def test_collectives_of_one_rank(accelerator: torch.device) -> None:
    """NCCL on a CUDA device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", COLLECTIVES.format(device=str(accelerator))]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | there, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.0, 1.0, 2.0, 3.0, 4.0] ['x'] 3"
