"""What the path of weights means: a file, or a run's directory."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from shared import cli, jobs
from shared.errors import FileFormatError
from student_trainer.runs.layout import BEST

GIVEN: dict[str, dict[str, Any]] = {
    "generate": {"method": "greedy"},
    "headroom": {"teacher": "127.0.0.1:1"},
    "export": {"out": "student.pt2"},
    "predict": {"out": "predicted.npz"},
    "evaluate": {"trips": "trips"},
    "bundle": {"report": "report"},
}
"""What each command that takes weights needs besides."""


def schema_of(job: cli.Job) -> Any:
    module, name = job.schema.split(":")
    return getattr(importlib.import_module(module), name)


TAKES_WEIGHTS = {
    job.name: schema
    for job in cli.declared(jobs.STUDENT_TRAINER)
    if "weights" in (schema := schema_of(job)).model_fields
}


def weights_of(job: str, path: Path) -> Any:
    schema, needed = TAKES_WEIGHTS[job], {"data": "store", "out": "out", **GIVEN[job]}
    given = {name: value for name, value in needed.items() if name in schema.model_fields}
    return schema.model_validate({**given, "weights": str(path)}).weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    best = tmp_path / "run" / BEST
    best.parent.mkdir(parents=True)
    best.touch()
    return tmp_path / "run"


@pytest.mark.parametrize("job", TAKES_WEIGHTS)
def test_every_command_that_takes_weights_takes_a_run_for_its_best_ones(job: str, run: Path, tmp_path: Path) -> None:
    several = job == "bundle"
    assert weights_of(job, run) == ((run / BEST,) if several else run / BEST)
    file = tmp_path / "hoser.pth"
    assert weights_of(job, file) == ((file,) if several else file)


@pytest.mark.parametrize("job", TAKES_WEIGHTS)
def test_a_directory_without_weights_is_refused(job: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=f"{tmp_path} is no run with weights: it has no {BEST}"):
        weights_of(job, tmp_path)
