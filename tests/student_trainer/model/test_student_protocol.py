"""A second student, known by its name alone, through every job that takes one; and names that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import bag_student
from support.fakes import FakeTeacher
from support.generated_trips import write_generated
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared import cli
from shared.errors import ConfigError, FileFormatError
from shared.store import Store
from student_trainer import Student
from student_trainer.__main__ import JOBS
from student_trainer.model import students
from student_trainer.model.weights import load_model
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train.config import TrainConfig
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session
from student_trainer.train.trainer import Trainer


@pytest.fixture(autouse=True)
def bag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(students.STUDENTS, "bag", bag_student.ENTRY)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("bag") / "store")


def settings_of(store: Store, out: Path, **changed: Any) -> TrainConfig:
    given: dict[str, Any] = {"data": store.path, "out": out, "teacher": "fake:1", "model": {"name": "bag", "width": 6}}
    given |= {"optim": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}, "runtime": {"device": "cpu"}}
    return TrainConfig.model_validate(given | {"log": {"tensorboard": False, "headroom": False}} | changed)


def session_of(settings: TrainConfig, store: Store) -> Session:
    runtime = Runtime.of(settings.runtime, torch.device("cpu"))
    return Session(settings, store, runtime, FakeTeacher(), find_checkpoint(settings, store))


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the distillation's head and target."""
    out = tmp_path_factory.mktemp("run") / "bag"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(students.STUDENTS, "bag", bag_student.ENTRY)
        session_of(settings_of(store, out), store).train()
    return out


def command(*arguments: object) -> int:
    return cli.main("student-trainer", "", JOBS, [str(argument) for argument in arguments])


def test_a_run_is_resumed_to_the_bit(store: Store, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def interrupted(self: Trainer, planned: Any) -> None:
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, planned)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", interrupted)
        session_of(settings_of(store, tmp_path / "run"), store).train()
    session_of(settings_of(store, tmp_path / "run", resume=True), store).train()
    whole, cut = (checkpoints.load(out / "checkpoints" / "last.pt") for out in (run, tmp_path / "run"))
    assert whole.progress == cut.progress and whole.progress.step > 10
    for ours, theirs in ((whole.model, cut.model), (whole.distillation, cut.distillation)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.model.keys() >= {"embedding.weight", "nearness"} and "head.q_proj.weight" in whole.distillation
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "metrics.jsonl"}, "nothing public"


def test_it_learns_and_its_run_says_what_it_is(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss_next_road"] for line in lines if "train/loss_next_road" in line]
    assert losses[-1] < losses[0] and all("val/kl" in line for line in lines if "val/accuracy" in line)
    assert checkpoints.load(run / "checkpoints" / "best.pt").config["model"] == {"name": "bag", "width": 6}


@pytest.mark.parametrize("method", ["greedy", "beam", "best_first", "shortest_path"])
def test_trips_are_searched_with_it(store: Store, run: Path, tmp_path: Path, method: str) -> None:
    places = ["--data", store.path, "--weights", run / "checkpoints" / "best.pt", "--out", tmp_path / "trips"]
    assert command("generate", *places, f"method={method}", "pairs=6", "threads=1", "search.max_steps=40") == 0
    summary = json.loads((tmp_path / "trips" / "summary.json").read_text())
    assert summary["pairs"] == 6 and summary["statuses"]["arrived"] > 0


def test_it_is_evaluated(store: Store, run: Path, tmp_path: Path) -> None:
    write_generated(tmp_path / "trips", store, 5)
    places = ["--data", store.path, "--trips", tmp_path / "trips", "--out", tmp_path / "out"]
    weights = run / "checkpoints" / "best.pt"
    assert command("evaluate", *places, "--weights", weights, "device=cpu", "bootstrap.draws=100") == 0
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_its_forms_agree(store: Store, run: Path, tmp_path: Path) -> None:
    """Every position of whole trips (`predict`), the last step (`next_road`, `export`), a step at a time (searches)."""
    weights, out = run / "checkpoints" / "best.pt", tmp_path / "out.npz"
    assert command("predict", "--data", store.path, "--weights", weights, "--split", "test", "--out", out) == 0
    arrays, trips = np.load(out), store.trips("test", "auto")
    student = Student.load(weights, store)
    decoder = student._decoder
    table = decoder.table()
    offsets = arrays["candidate_offsets"]
    previous = -1
    for position in np.flatnonzero(arrays["trip"] == 3):
        step, first = int(arrays["step"][position]), int(trips.offsets[3])
        roads, times = trips.roads[first : first + step + 1], trips.times[first : first + step + 1]
        end = int(trips.roads[trips.offsets[4] - 1])
        found = student.next_road(roads, times, end)
        own = slice(offsets[position], offsets[position + 1])
        np.testing.assert_array_equal(found.roads, arrays["road"][own])
        np.testing.assert_allclose(found.logits, arrays["logit"][own], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.seconds, arrays["seconds"][own], rtol=1e-4)
        place = table.take(1)
        table.parent[place], table.road[place], table.time[place] = previous, roads[-1], times[-1]
        previous = int(place[0])
        weekend = np.array([False])
        _, log_prob = decoder.advance(table, place, np.array([step + 1]), weekend, np.array([end]))
        np.testing.assert_allclose(np.exp(log_prob), found.probabilities, rtol=0, atol=1e-5)
        seconds = decoder.seconds(table, np.repeat(place, len(found.roads)), found.roads)
        np.testing.assert_allclose(seconds, found.seconds, rtol=0, atol=0.51)
    assert command("export", "--data", store.path, "--weights", weights, "--out", tmp_path / "s.pt2") == 0


def test_a_student_that_there_is_not_is_refused_and_the_known_are_named(
    store: Store, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train", "--data", store.path, "--out", tmp_path / "run", "model.name=sack") == 2
    assert "model: there is no student 'sack'; there are bag, hoser" in capsys.readouterr().err
    line = ["train", "--data", store.path, "--out", tmp_path / "run", "model.name=bag", "model.num_heads=2"]
    assert command(*line) == 2
    assert "the student bag has no setting num_heads; it has name, width" in capsys.readouterr().err
    monkeypatch.delitem(students.STUDENTS, "bag")
    with pytest.raises(FileFormatError, match=r"best.pt: .* no student 'bag'; there are hoser"):
        load_model(run / "checkpoints" / "best.pt", store)


def test_a_run_is_not_resumed_as_another_student(store: Store, run: Path) -> None:
    settings = settings_of(store, run, model={"name": "hoser", "road_id_dim": 8, "road_attr_dim": 2}, resume=True)
    with pytest.raises(ConfigError, match=r"model\.name is bag there, hoser here"):
        find_checkpoint(settings, store)


def test_a_checkpoint_without_a_name_is_of_hoser(store: Store, tmp_path: Path) -> None:
    """As versions wrote it that knew no other."""
    best = write_run(tmp_path / "run", store, 1)
    before = checkpoints.load(best)
    del before.config["model"]["name"]
    checkpoints.save(best, before)
    model, _ = load_model(best, store)
    assert model.config.name == "hoser"
    checkpoints.save(best.with_stem("last"), before)
    settings = TrainConfig.model_validate(before.config | {"resume": True})
    assert find_checkpoint(settings, store) is not None
