"""The command through a running daemon, and the line at the end of a run: both on a random city."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunningTeacher, start_teacher, write_tiny_teacher
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared.errors import CompatibilityError, ConfigError, TeacherError
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.destination import FEATURES
from student_trainer.evaluate.headroom import WITHOUT_TEACHER
from student_trainer.headroom import run as job
from student_trainer.headroom.config import HeadroomConfig
from student_trainer.model.weights import load_model
from student_trainer.predict.config import CutConfig
from student_trainer.predict.positions import accuracy_of, predict
from student_trainer.train.config import TrainConfig
from student_trainer.train.destination_target import choices_among, fit_target
from student_trainer.train.headroom import answers_of, of_run
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store", trips=120)


@pytest.fixture(scope="module")
def teacher(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTeacher]:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    with start_teacher(path) as running:
        yield running


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTeacher:
    known = FakeTeacher()
    monkeypatch.setattr(job, "connect", lambda settings, store: known)
    return known


def settings(store: Store, weights: Path, **values: Any) -> HeadroomConfig:
    given = {"data": store.path, "weights": weights, "teacher": "fake:1", "trips": 0, "device": "cpu"}
    return HeadroomConfig.model_validate({**given, "bootstrap": {"draws": 200}, **values})


@pytest.mark.integration
def test_it_answers_in_json_and_says_what_it_means(
    store: Store, teacher: RunningTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = write_run(tmp_path / "run", store, 1).parent.parent
    with caplog.at_level(logging.INFO):
        assert job.run(settings(store, run, teacher=teacher.address)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher_revision"] == teacher.ready["weights_revision"]
    assert found["weights"] == str(run / "checkpoints" / "best.pt")
    assert (found["split"], found["trips"], found["labelled_trips"], found["window"]) == ("val", 40, 120, 4)
    assert set(found["arms"]) == {
        *("student", "teacher", "target", "features", "student_scaled", "student_own"),
        *("student_features", "stacked", "stacked_features"),
    }
    assert found["sentence"].startswith("with this teacher and these 120 labelled trips expect ")
    assert caplog.messages[-1 - len(found["hints"]) :] == [found["sentence"], *found["hints"]]


def test_the_student_is_as_right_as_predict_says(store: Store, fake: FakeTeacher, tmp_path: Path) -> None:
    weights = write_run(tmp_path / "run", store, 2)
    found = job.measure(settings(store, weights))
    model, scale = load_model(weights, store)
    arrays = predict(model, RoadNetwork.load(store), store.trips("val"), scale, CutConfig(candidate_top_k=0), CPU)
    assert found["arms"]["student"]["accuracy"] == pytest.approx(accuracy_of(arrays), abs=1e-12)
    assert found["positions"] == len(arrays["trip"])
    rows = np.split(arrays["logit"].astype(float), arrays["candidate_offsets"][1:-1])
    nll = [np.logaddexp.reduce(row) - row[label] for row, label in zip(rows, arrays["label"], strict=True)]
    assert found["arms"]["student"]["nll"] == pytest.approx(np.mean(nll), rel=1e-6)


def test_it_is_deterministic_and_samples_by_its_seed(store: Store, fake: FakeTeacher, tmp_path: Path) -> None:
    weights = write_run(tmp_path / "run", store, 3)
    found = [job.measure(settings(store, weights, trips=15, seed=seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0]["arms"] != found[2]["arms"]
    assert found[0]["trips"] == 15
    every = [job.measure(settings(store, weights, trips=trips)) for trips in (0, 41)]
    assert every[0] == every[1] and every[0]["trips"] == 40


def test_what_a_run_was_told_is_what_the_teacher_is_asked(store: Store, fake: FakeTeacher, tmp_path: Path) -> None:
    given: dict[str, Any] = {"distill": {"window": 2}, "batch": {"train_trips": 30}}
    weights = write_run(tmp_path / "run", store, 4, **given)
    found = job.measure(settings(store, weights))
    assert {query.window for query in fake.queries} == {2} and found["window"] == 2
    assert found["labelled_trips"] == 30
    fake.queries.clear()
    found = job.measure(settings(store, weights, window=3, train_trips=0))
    assert {query.window for query in fake.queries} == {3} and found["labelled_trips"] == 120


def test_the_teacher_is_asked_about_the_trips_that_are_measured_alone(
    store: Store, fake: FakeTeacher, tmp_path: Path
) -> None:
    """Not about labelled ones, which it may know by heart; how many there are changes the sentence alone."""
    trained(store, tmp_path / "run", target="destination", train_trips=20)
    found = [job.measure(settings(store, tmp_path / "run", **told)) for told in ({}, {"train_trips": 60})]
    asked = sum(query.positions for query in fake.queries)
    assert asked == 2 * (store.trips("val").lengths - 1).sum()
    assert [one["labelled_trips"] for one in found] == [20, 60] and found[0]["arms"] == found[1]["arms"]
    with pytest.raises(ConfigError, match="train_trips is 121, but the store has 120 training trips"):
        job.measure(settings(store, tmp_path / "run", train_trips=121))


def test_weights_of_public_hoser_need_no_run(store: Store, fake: FakeTeacher, tmp_path: Path) -> None:
    session = trained(store, tmp_path / "run")
    found = job.measure(settings(store, tmp_path / "run" / "hoser.pth"))
    assert found["arms"]["student"]["accuracy"] == pytest.approx(session.progress.best_accuracy)
    assert found["labelled_trips"] == 120 and found["window"] == 4


def test_weights_of_another_store_are_refused(store: Store, fake: FakeTeacher, tmp_path: Path) -> None:
    other = write_random_store(tmp_path / "store", seed=1)
    with pytest.raises(CompatibilityError, match="was trained on another store"):
        job.measure(settings(store, write_run(tmp_path / "run", other, 1)))


def trained(store: Store, out: Path, teacher: str = "fake:1", target: str = "history", **batch: Any) -> Session:
    given = TrainConfig.model_validate(
        {
            "data": store.path,
            "out": out,
            "teacher": teacher,
            "model": {"road_id_dim": 8, "road_attr_dim": 2},
            "optim": {"epochs": 2, "batch_size": 8},
            "distill": {"weight": 0.5, "target": target, "head": 0.0, "schedule": "constant"},
            "batch": batch,
            "log": {"tensorboard": False, "progress": False},
            "runtime": {"device": "cpu"},
        }
    )
    session = Session(given, store, Runtime.of(given.runtime, CPU), FakeTeacher())
    session.train()
    return session


@pytest.mark.parametrize(("target", "ceiling"), [("history", "stacked"), ("destination", "stacked_features")])
def test_a_run_says_at_its_end_what_is_left(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str, ceiling: str
) -> None:
    """Of the validation trips and the best weights, without another question to the teacher."""
    session = trained(store, tmp_path / "run", target=target, train_trips=50)
    assert isinstance(session.teacher, FakeTeacher)
    asked = len(session.teacher.queries)
    with caplog.at_level(logging.INFO):
        summary = session.write_summary(1.0)
    assert len(session.teacher.queries) == asked
    found = summary["headroom"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["headroom"] == found
    assert found["labelled_trips"] == 50 and found["trips"] == 40 and found["ceiling"] == ceiling
    assert found["arms"]["student"]["accuracy"] == pytest.approx(summary["best"]["accuracy"], abs=1e-6)
    assert found["arms"]["student"]["nll"] == pytest.approx(summary["best"]["nll"], rel=1e-5)
    assert found["positions"] == summary["best"]["positions"]
    assert sum(found["sentence"] in message for message in caplog.messages) == 1
    if target == "destination":
        assert found["arms"]["target"]["nll"] > summary["best"]["target_nll"], "which was fitted on these trips"


def test_a_run_without_a_teacher_says_nothing(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = trained(store, tmp_path / "run", teacher="none")
    with caplog.at_level(logging.INFO):
        assert session.write_summary(1.0)["headroom"] is None
    session = trained(store, tmp_path / "other")
    session.settings = session.settings.model_copy(
        update={"log": session.settings.log.model_copy(update={"headroom": False})}
    )
    with caplog.at_level(logging.INFO):
        assert session.write_summary(1.0)["headroom"] is None
    assert not [record for record in caplog.records if record.name.endswith("headroom") or "expect " in record.message]


def test_a_teacher_that_is_gone_costs_the_line_and_not_the_run(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = trained(store, tmp_path / "run")
    monkeypatch.setattr(session.validator, "_replies", {})

    def away(query: object) -> None:
        raise TeacherError("it is away")

    monkeypatch.setattr(session.teacher, "submit", away)
    summary = session.write_summary(1.0)
    assert summary["headroom"] is None and summary["steps"] > 0
    assert "the headroom was not measured: it is away" in caplog.messages


def test_of_many_validation_trips_some_of_all_lengths_are_enough(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = trained(store, tmp_path / "run")
    batches = list(session.validator.some_of(40))
    assert sum(len(item.batch.trips) for item in batches) == 40
    some = list(session.validator.some_of(16))
    assert len(batches) == 5 and len(some) == 2
    steps = [int(item.batch.length.sum()) for item in batches]
    assert [int(item.batch.length.sum()) for item in some] == [steps[1], steps[4]] and steps == sorted(steps)
    monkeypatch.setattr("student_trainer.train.headroom.TRIPS", 16)
    found = of_run(session.model, session.val_feed, session.validator, CPU, 120)
    assert found is not None and found["trips"] == 16


def test_answers_are_of_the_same_candidates(store: Store, tmp_path: Path) -> None:
    """Position for position those that the labelled choices have, which the target is fitted on."""
    session = trained(store, tmp_path / "run", target="destination")
    index = np.arange(20)
    items = (session.feed.prepare(index[start : start + 7]) for start in range(0, 20, 7))
    answers = answers_of(session.model, session.feed, items, CPU)
    choices = choices_among(session.feed, index)
    assert np.array_equal(answers.choices.features, choices.features)
    assert np.array_equal(answers.choices.label, choices.label)
    assert np.array_equal(np.bincount(answers.trip), session.feed.lengths(index) - 1)
    assert session.model.training
    target = fit_target(session.feed, 20, 0)
    assert target.coefficients.shape == (len(FEATURES),) and len(WITHOUT_TEACHER) == 5
