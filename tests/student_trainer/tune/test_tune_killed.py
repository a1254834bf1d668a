"""A study that is killed, a worker first and then everything, goes on and counts every trial once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from optuna.trial import TrialState
from support.random_city import write_random_store

pytestmark = pytest.mark.integration

TRIALS = 4
SETTINGS = (
    "skip=[0,2,3]",
    f"trials={TRIALS}",
    "epochs=25",
    "seeds=[1,2]",
    "workers=2",
    "sampler.name=tpe",
    "pruner.name=none",
    "train={model: {road_id_dim: 8, road_attr_dim: 2}, optim: {batch_size: 8}, runtime: {threads: 1}, "
    "log: {tensorboard: false}}",
)


def start(store: Path, teacher: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "student_trainer", "tune", "--data", str(store), "--teacher", teacher]
    return subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    begin = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begin < seconds
        time.sleep(0.1)


def trained(out: Path) -> set[str]:
    """Folders of trials under way that have a checkpoint."""
    return {path.parts[-4] for path in out.glob("optuna_trials/*_running/seed*/checkpoints/last.pt")}


@pytest.mark.long
def test_killed_twice_nothing_is_lost_or_counted_twice(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    store = write_random_store(tmp_path / "store", trips=40)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    out = tmp_path / "out"
    with running_teacher(tmp_path / "teacher") as server:
        first = start(store.path, server.address, out)
        until(lambda: len(trained(out)) == 2, first)
        workers = psutil.Process(first.pid).children()
        assert len(workers) == 2
        workers[0].kill()
        until(lambda: any(child not in workers for child in psutil.Process(first.pid).children()), first)
        until(lambda: len(trained(out)) == 2, first)
        everything = [psutil.Process(first.pid), *psutil.Process(first.pid).children()]
        for process in everything:
            process.kill()
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        second = start(store.path, server.address, out)
        stdout, stderr = second.communicate(timeout=280)
        assert second.returncode == 0, stderr
    found = json.loads(stdout)
    assert found["phases"] == {"1": {"complete": TRIALS}}
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{out / 'optuna.db'}")
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(TRIALS))
    lost = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(study.trials) == TRIALS + len(lost)
    assert 2 <= len(lost) <= 3  # one with the worker; with everything two, unless one had just ended
    again = {trial.user_attrs["retry_of"]: trial for trial in study.trials if "retry_of" in trial.user_attrs}
    assert {trial.number for trial in lost} == again.keys()
    assert all(again[trial.number].params == trial.params for trial in lost)
    for trial in complete:
        assert list(trial.intermediate_values) == list(range(1, 26))
        runs = trial.user_attrs["result"]["runs"]
        assert set(runs) == {"1", "2"} and all(len(run["history"]) == 25 for run in runs.values())
    names = sorted(path.name for path in (out / "optuna_trials").iterdir())
    assert names == [
        f"trial_{trial.number:03d}_distilled_{'failed' if trial in lost else 'complete'}" for trial in study.trials
    ]
