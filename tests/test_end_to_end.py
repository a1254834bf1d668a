"""Trainer and daemon together, as processes that a user starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from support.random_city import write_random_store
from support.runs import train_here

from shared import cli
from shared.store import Store
from student_trainer.__main__ import JOBS

pytestmark = pytest.mark.integration

SMALL = (
    "model.road_id_dim=8",
    "model.road_attr_dim=2",
    "optim.epochs=2",
    "optim.batch_size=8",
    "log.tensorboard=false",
    "runtime.threads=1",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


@pytest.fixture(scope="module")
def teacher(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    return path


def start(package: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", package, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def words(store: Store, address: str, out: Path, *overrides: str) -> list[object]:
    """Of a small run, behind `train`."""
    return ["--data", store.path, "--teacher", address, "--out", out, *SMALL, *overrides]


def train(store: Store, address: str, out: Path, *overrides: str) -> subprocess.Popen[str]:
    return start("student_trainer", "train", *words(store, address, out, *overrides))


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return {**loaded["model"], **loaded["distillation"]}


def assert_same_bits(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.long
def test_how_the_teacher_is_asked_changes_no_bit(
    store: Store, teacher: Path, running_teacher: TeacherStarter, tmp_path: Path
) -> None:
    """Stream or unary, windows cut here or there, alone or beside other trainers."""
    ways = {
        "stream": (),
        "unary": ("client.transport=unary",),
        "window": ("distill.history=window",),
        "hurried": ("client.lookahead=1", "client.max_in_flight=1"),
    }
    with running_teacher(teacher) as server:
        train_here(*words(store, server.address, tmp_path / "alone"))
        together = [train(store, server.address, tmp_path / name, *way) for name, way in ways.items()]
        for process in together:
            finish(process)
    for name in ways:
        assert_same_bits(tmp_path / "alone", tmp_path / name)
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert summary["teacher_revision"] == server.ready["weights_revision"]
    assert summary["best"]["kl"] > 0


@pytest.mark.long
def test_a_teacher_restarted_in_the_middle_changes_no_bit(
    store: Store, teacher: Path, running_teacher: TeacherStarter, tmp_path: Path
) -> None:
    epochs = "optim.epochs=10"
    with running_teacher(teacher) as server:
        train_here(*words(store, server.address, tmp_path / "calm", epochs))
        address = server.address
    with running_teacher(teacher, listen=address) as server:
        process = train(store, address, tmp_path / "shaken", epochs, "log.every=1")
        wait_for(tmp_path / "shaken" / "metrics.jsonl")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert process.poll() is None, "the run was over before the teacher died"
        with running_teacher(teacher, listen=address):
            finish(process)
    assert_same_bits(tmp_path / "calm", tmp_path / "shaken")


def wait_for(path: Path, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < give_up, f"{path} did not appear"
        time.sleep(0.02)


EPOCHS = "optim.epochs=12"


@pytest.fixture(scope="module")
def whole(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_here(*words(store, "none", out, EPOCHS))
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_at_the_command_line(
    store: Store, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = train(store, "none", tmp_path / "cut", EPOCHS, "log.every=1")
    wait_for(tmp_path / "cut" / "metrics.jsonl")
    process.send_signal(number)
    _, err = finish(process, code=130)
    assert "go on with --resume" in err
    _, err = finish(train(store, "none", tmp_path / "cut", EPOCHS, "--resume"))
    assert "resuming at step" in err
    assert_same_bits(whole, tmp_path / "cut")


def test_another_vocabulary_is_refused_before_anything_is_written(
    store: Store, tiny_teacher: Path, running_teacher: TeacherStarter, tmp_path: Path
) -> None:
    with running_teacher(tiny_teacher) as server:
        out, err = finish(train(store, server.address, tmp_path / "run"), code=2)
    assert not out
    (line,) = [line for line in err.splitlines() if line.startswith("student-trainer train:")]
    assert "vocabulary.cells: " in line and "grid.min_lat: 50.0 != 37.0" in line and "grid.teacher" in line
    assert not (tmp_path / "run").exists()


def test_absent_teacher(store: Store, tmp_path: Path) -> None:
    begin = time.monotonic()
    _, err = finish(train(store, "127.0.0.1:9", tmp_path / "run", "client.connect_seconds=2"), code=2)
    assert time.monotonic() - begin > 2
    assert "waiting up to 2 s" in err and "no teacher at 127.0.0.1:9 within 2 s" in err
    assert not (tmp_path / "run").exists()


def test_predict_of_a_run_and_of_its_export_agree(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(*words(store, "none", run))
    arrays = []
    for weights_file in (run / "checkpoints" / "best.pt", run / "hoser.pth"):
        out = tmp_path / f"{weights_file.stem}.npz"
        predict = ("predict", "--data", store.path, "--weights", weights_file, "--split", "val", "--out", out)
        printed, _ = finish(start("student_trainer", *predict))
        with np.load(out) as file:
            arrays.append(dict(file))
        accuracy = json.loads(printed)["accuracy"]
        assert accuracy == pytest.approx(json.loads((run / "summary.json").read_text())["best"]["accuracy"], abs=1e-6)
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    first = arrays[0]
    trips = store.trips("val")
    assert first["trip"].tolist() == np.repeat(np.arange(len(trips)), trips.lengths - 1).tolist()
    assert first["candidate_offsets"][-1] == len(first["road"]) == len(first["logit"]) == len(first["seconds"])
    chosen = first["road"][first["candidate_offsets"][:-1] + first["label"]]
    following = np.concatenate([trips.roads[a + 1 : b] for a, b in zip(trips.offsets, trips.offsets[1:], strict=False)])
    assert chosen.tolist() == following.tolist()
    assert {first[n].dtype.str for n in ("trip", "step", "candidate_offsets", "road", "label")} == {"<i8"}
    assert {first[name].dtype.str for name in ("logit", "seconds", "log1p_seconds_standardised")} == {"<f4"}


TRAIN = "train --data {store} --out {out} "
PREDICT = "predict --data {store} --weights {out}/w.pt "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TRAIN + "optim.epoch=3", "unknown setting optim.epoch (did you mean optim.epochs?); known here: epochs"),
        (TRAIN + "distill.history=window distill.window=0", "history=sequence"),
        (TRAIN + "batch.train_trips=999", "has 60 training trips"),
        (TRAIN + "runtime.device=cuda:99", "is not here"),
        ("train --data {out}/none --out {out}", "is not a store"),
        (PREDICT + "--out {out}/x.npz", "cannot read the weights"),
        ("predict --data {store} --weights {store}/store.json --out {out}.txt", "must end in .npz"),
        ("predict --data {store} --weights {store}/store.json --out {out}.npz", "is not a PyTorch checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    store: Store, tmp_path: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    filled = [argument.format(store=store.path, out=out) for argument in arguments.split()]
    capsys.readouterr()
    assert cli.main("student-trainer", "", JOBS, filled) == 2
    printed, err = capsys.readouterr()
    assert not printed and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("student-trainer")]
    assert len(lines) == 1 and message in lines[0], err
    assert list(tmp_path.iterdir()) == []
