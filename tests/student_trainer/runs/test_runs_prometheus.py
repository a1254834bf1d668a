"""A run tells Prometheus what its files say, in Prometheus' units, and lives without it."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.random_city import write_random_store
from support.scrapes import samples
from support.trials import tune_settings

from shared.sinks import Sinks, WandbRun
from shared.store import Store
from student_trainer.runs.prometheus import Prometheus, check_place, name_of
from student_trainer.train import logbook
from student_trainer.train import run as training
from student_trainer.train.config import LogConfig, TrainConfig
from student_trainer.tune.trial import Task

ABOUT = {"run": "runs/a", "revision": "r1", "store": "s1"}


@pytest.fixture
def sink() -> Iterator[Prometheus]:
    made = Prometheus("127.0.0.1:0", ABOUT, after=10)
    yield made
    made.close()


def told(sink: Prometheus) -> dict[tuple[str, tuple[str, ...]], float]:
    return samples(str(sink.address))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("train/loss_kl", "trainer_train_loss_kl"),
        ("perf/teacher_wait_ms", "trainer_perf_teacher_wait_seconds"),
        ("perf/teacher_away_s", "trainer_perf_teacher_away_seconds"),
        ("perf/positions_per_s", "trainer_perf_positions_per_s"),
        ("val/seconds_error", "trainer_val_seconds_error"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert name_of(name) == expected


def test_newest_values_and_sums_over_the_steps(sink: Prometheus) -> None:
    first = {"train/loss": 2.0, "perf/step_ms": 500.0, "perf/teacher_wait_ms": 100.0, "perf/positions_per_s": 40.0}
    sink.write(14, first)
    sink.write(14, {"val/accuracy": 0.5})
    sink.write(20, {**first, "train/loss": 1.0, "perf/teacher_wait_ms": 0.0, "perf/forward_ms": 200.0})
    seen = told(sink)
    assert seen["trainer_train_loss", ()] == 1.0
    assert seen["trainer_perf_step_seconds", ()] == 0.5
    assert seen["trainer_val_accuracy", ()] == 0.5
    assert seen["trainer_steps_total", ()] == 10
    assert seen["trainer_positions_total", ()] == pytest.approx(200)  # 40 a second for ten steps of half a second
    stages = {labels[0]: value for (name, labels), value in seen.items() if name == "trainer_stage_seconds_total"}
    assert stages == pytest.approx({"step": 5.0, "teacher_wait": 0.4, "data_wait": 0.0, "forward": 1.2})
    assert seen["trainer_run_info", ("r1", "runs/a", "s1")] == 1


def test_what_alerts_and_rates_need_is_there_at_the_start(sink: Prometheus) -> None:
    seen = told(sink)
    assert {seen["trainer_stage_seconds_total", (stage,)] for stage in ("step", "teacher_wait", "data_wait")} == {0}
    assert (seen["trainer_steps_total", ()], seen["trainer_positions_total", ()]) == (0, 0)


def test_the_port_is_free_afterwards() -> None:
    made = Prometheus("127.0.0.1:0", ABOUT, after=0)
    made.close()
    Prometheus(str(made.address), ABOUT, after=0).close()


def test_a_taken_port_does_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        sinks = Sinks(tmp_path, False, WandbRun("off", "p", "n", {}), prometheus=lambda: Prometheus(place, ABOUT, 0))
        sinks.write(1, {"a": 1.0})
        sinks.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Prometheus failed" in line and "in use" in line and "goes on without it" in line


@pytest.mark.parametrize("place", ["unix:/tmp/x", "9465", "http://here:1", "here:99999"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|write|above"):
        check_place(place)


def test_a_run_tells_what_its_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_random_store(tmp_path / "store", trips=40)
    seen: list[dict[tuple[str, tuple[str, ...]], float]] = []

    class Watched(Prometheus):
        def close(self) -> None:
            """Looks a last time."""
            seen.append(told(self))
            super().close()

    monkeypatch.setattr(logbook, "Prometheus", Watched)
    log = {"tensorboard": False, "every": 2, "progress": False, "prometheus": "127.0.0.1:0"}
    settings = TrainConfig.model_validate(
        {
            "data": store.path,
            "out": tmp_path / "run",
            "model": {"road_id_dim": 8, "road_attr_dim": 2},
            "optim": {"epochs": 1, "batch_size": 8},
            "runtime": {"device": "cpu", "threads": 1},
            "log": log,
        }
    )
    assert training.run(settings) == 0
    (last,) = seen
    written: dict[str, float] = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        written |= json.loads(line)
    steps = written.pop("step")
    assert last["trainer_steps_total", ()] == steps
    assert written.keys() >= {"train/loss", "perf/step_ms", "val/accuracy"}
    for name, value in written.items():
        assert last[name_of(name), ()] == pytest.approx(value / 1000 if name.endswith("_ms") else value)
    assert last["trainer_run_info", ("", str(tmp_path / "run"), store.fingerprint)] == 1


def test_trials_do_not_want_one_port(tmp_path: Path) -> None:
    store: Store = write_random_store(tmp_path / "store", trips=40)
    settings = tune_settings(store, tmp_path / "out")
    recipe = settings.train.model_copy(update={"log": LogConfig(prometheus="127.0.0.1:9465")})
    task = Task(
        data=store.path,
        teacher="none",
        recipe=recipe,
        epochs=1,
        seeds=(1, 2),
        objective=settings.objective,
        group="g",
        name="n",
    )
    assert task.settings(tmp_path / "trial", 1).log.prometheus == "off"
