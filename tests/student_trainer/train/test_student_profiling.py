"""The profile of a run: parts add up, and what is written can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.random_city import write_random_store

from student_trainer.train import profiling
from student_trainer.train.config import TrainConfig
from student_trainer.train.meters import Stopwatch
from student_trainer.train.profiling import Profile
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session


def test_what_no_part_counts_is_shown_as_other() -> None:
    steps = [{"forward": 30.0, "backward": 60.0, "step": 100.0}, {"forward": 50.0, "backward": 40.0, "step": 100.0}]
    summary = profiling.summarise(steps)
    assert list(summary) == ["forward", "backward", "other", "step"]
    assert summary["forward"] == {"mean_ms": 40.0, "p50_ms": 40.0, "p95_ms": 49.0, "share": 0.4}
    assert summary["other"]["share"] == pytest.approx(0.1)
    assert summary["step"]["share"] == 1.0
    lines = profiling.table(summary).splitlines()
    assert lines[1].split() == ["student,", "forward", "40.0", "40.0", "49.0", "40.0", "%"]


def test_first_steps_do_not_count(tmp_path: Path) -> None:
    profile = Profile(tmp_path, trace=False)
    for number in range(profiling.WARM_STEPS + 2):
        profile.add_step({"forward": 0.001}, 1.0 if number < profiling.WARM_STEPS else 0.002)
    profile.close()
    record = json.loads((tmp_path / "profile.json").read_text())
    assert [step["step"] for step in record["steps"]] == [2.0, 2.0]


def test_parts_since_a_moment() -> None:
    stopwatch = Stopwatch()
    with stopwatch.stage("a"):
        pass
    before = dict(stopwatch.seconds)
    stopwatch.seconds["a"] += 2.0
    stopwatch.seconds["b"] += 1.0
    assert stopwatch.since(before) == {"a": pytest.approx(2.0), "b": 1.0}


def test_a_run_writes_table_and_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = write_random_store(tmp_path / "store")
    overrides = {
        "data": store.path,
        "out": tmp_path / "run",
        "profile": "trace",
        "model": {"road_id_dim": 8, "road_attr_dim": 2},
        "optim": {"epochs": 2, "batch_size": 8},
        "log": {"tensorboard": False, "progress": False, "every": 3},
    }
    settings = TrainConfig.model_validate(overrides)
    session = Session(settings, store, Runtime.of(settings.runtime, torch.device("cpu")))
    (tmp_path / "run").mkdir()
    with caplog.at_level("INFO"):
        session.train()
    assert "road network, backward" in caplog.text
    record = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert len(record["steps"]) == session.schedule.total_steps - profiling.WARM_STEPS
    for step in record["steps"]:
        assert 0 < sum(step.values()) - step["step"] <= step["step"] * 1.001, "parts do not overlap"
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    assert any("_AttendRows" in event.get("name", "") for event in events)
