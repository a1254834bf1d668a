"""Runs to compare: one that nothing disturbs, and what two of them have left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY

from shared import cli
from student_trainer.__main__ import JOBS
from student_trainer.runs import checkpoint as checkpoints


def train_here(*arguments: object) -> None:
    """`student-trainer train` from beginning to end in this process: what processes are compared with.

    It has their bits, and spares the seconds in which one starts.
    """
    assert cli.main("student-trainer", "", JOBS, ["train", *map(str, arguments)]) == 0


def start_until_killed(moment: str, number: int, *arguments: object) -> subprocess.Popen[str]:
    """`student-trainer train` in a process of its own, which kills itself: see `train_until_killed.py`."""
    script = REPOSITORY / "tests" / "support" / "train_until_killed.py"
    return subprocess.Popen(
        [sys.executable, *map(str, (script, moment, number, "train", *arguments))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )


def records(out: Path) -> list[dict[str, float]]:
    """Lines of metrics without times, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_time(name)} for line in lines]


def is_time(name: str) -> bool:
    """Whether a metric is one of time."""
    return name.startswith("perf/") or name.endswith(("teacher_queue_ms", "teacher_compute_ms"))


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    """Compares nested containers of tensors and plain values."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(left, right, f"{where}/{number}")
    else:
        assert a == b, where


def assert_same_runs(a: Path, b: Path, but_records: int = 0) -> None:
    """Compares all that two runs have learned and written, bit for bit, but times and places.

    Args:
        a, b: directories of finished runs.
        but_records: how many lines of metrics may differ.
    """
    for name in ("last", "best"):
        contents = []
        for out in (a, b):
            values = dict(vars(checkpoints.load(out / "checkpoints" / f"{name}.pt")))
            config = dict(values.pop("config"))
            values["config"] = {key: config[key] for key in config.keys() - {"out", "resume", "log", "teacher"}}
            values["progress"] = vars(values["progress"])
            values["sums"] = {key: total for key, total in values["sums"].items() if not is_time(key)}
            contents.append(values)
        assert_same_bits(contents[0], contents[1], name)
    ours, theirs = records(a), records(b)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert sum(left != right for left, right in zip(ours, theirs, strict=True)) <= but_records
    assert_same_bits(checkpoints.load_tensors(a / "hoser.pth"), checkpoints.load_tensors(b / "hoser.pth"), "hoser.pth")
