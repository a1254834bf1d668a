"""Killed at any moment and resumed, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TeacherStarter, write_tiny_teacher
from support.random_city import write_random_store
from support.runs import assert_same_runs, records, start_until_killed, train_here

pytestmark = pytest.mark.integration

SETTINGS = (
    "model.road_id_dim=8",
    "model.road_attr_dim=2",
    "optim.epochs=40",
    "optim.batch_size=8",
    "optim.accumulation=3",
    "log.tensorboard=false",
    "log.every=4",
    "log.checkpoint_every=2",
    "runtime.threads=1",
)
"""61 trips: 8 batches of which the last holds 5 trips, 3 steps an epoch, records and checkpoints out of step."""

MOMENTS = (("save", 7), ("replace", 12), ("record", 9))
"""Each within a run of its own, which goes on where the one before was killed."""

TIMES = 3
"""How often it is killed from outside, at random."""


def words(store: Path, teacher: str, out: Path, *flags: str) -> list[str]:
    """Of the run, behind `train`."""
    return ["--data", str(store), "--teacher", teacher, "--out", str(out), *flags, *SETTINGS]


def start(moment: str, number: int, store: Path, teacher: str, out: Path, *flags: str) -> subprocess.Popen[str]:
    return start_until_killed(moment, number, *words(store, teacher, out, *flags))


def finish(process: subprocess.Popen[str], code: int) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err


def kill_within(process: subprocess.Popen[str], out: Path, seconds: float) -> None:
    """Kills so many seconds after the run has made its first record, or goes on making them."""
    path = out / "metrics.jsonl"
    begin = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == begin and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    finish(process, -signal.SIGKILL)


@pytest.mark.long
def test_killed_at_any_moment_resumes_to_the_bit(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    """Weights, optimizer, records, best: with a real teacher and several micro-batches a step."""
    store = write_random_store(tmp_path / "store", trips=61)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with running_teacher(tmp_path / "teacher") as server:
        train_here(*words(store.path, server.address, whole))
        flags: tuple[str, ...] = ()
        for moment, number in MOMENTS:
            finish(start(moment, number, store.path, server.address, cut, *flags), -signal.SIGKILL)
            flags = ("--resume",)
        random = np.random.default_rng(0)
        for seconds in random.uniform(0, 0.15, TIMES):
            process = start("never", 0, store.path, server.address, cut, *flags)
            kill_within(process, cut, seconds)
        finish(start("never", 0, store.path, server.address, cut, *flags), 0)
    assert len(records(whole)) == 60 + 40  # of training, every 4 steps and at the ends of epochs, and of validation
    assert_same_runs(whole, cut)
    assert not [path.name for path in (cut / "checkpoints").iterdir() if path.name.startswith(".")]
