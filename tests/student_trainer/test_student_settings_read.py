"""Every setting of the trainer's jobs is read when the job runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TeacherStarter, write_tiny_teacher
from support.certificates import reads_of_a_channel
from support.command_lines import every_job
from support.fake_wandb import FakeWandb
from support.generated_trips import write_generated
from support.random_city import write_random_sample, write_random_store
from support.report_city import city
from support.setting_reads import (
    Setting,
    jobs_with_a_test,
    reads_all_of,
    reads_of_the_log,
    reads_of_tracing,
    recorded_reads,
    settings_of,
)
from support.tiny_city import write_tiny_city
from support.trained_runs import write_run

from shared.errors import ConfigError, TrainingError
from shared.store import Store
from student_trainer.__main__ import JOBS
from student_trainer.compare import run as compare
from student_trainer.compare.config import CompareConfig
from student_trainer.data.network import RoadNetwork
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.run import run as run_demo_city
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.retry import RetryPolicy
from student_trainer.evaluate import run as evaluation
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.generate.config import SearchConfig
from student_trainer.headroom import run as headroom
from student_trainer.headroom.config import HeadroomConfig
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.device import float32_products
from student_trainer.model.hoser import HOSER
from student_trainer.pipeline import run as pipeline
from student_trainer.pipeline.config import PipelineConfig
from student_trainer.predict import export
from student_trainer.predict import run as predict
from student_trainer.predict.config import ExportConfig, PredictConfig
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import run as run_prepare
from student_trainer.report import bundle
from student_trainer.report import run as report
from student_trainer.report.config import BundleConfig, ReportConfig
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.sample import run as sample
from student_trainer.sample.config import SampleConfig
from student_trainer.train.config import RuntimeConfig, TrainConfig
from student_trainer.train.optim import Precision
from student_trainer.train.run import run as run_train

__all__ = ["city"]


def test_every_job_of_both_programs_has_such_a_test() -> None:
    assert sorted(jobs_with_a_test()) == sorted(job.yaml_section for _, job in every_job())


def test_a_read_is_an_attribute_and_no_dump() -> None:
    settings = TrainConfig.model_validate({"data": "d", "out": "o"})
    with recorded_reads() as reads:
        settings.model_dump(mode="json")
        repr(settings)
        assert settings == settings.model_copy()
        TrainConfig.model_validate({"data": "d", "out": "o", "distill": {"history": "window"}})
        assert not reads
        _ = settings.distill.window
        assert reads == {("TrainConfig", "distill"), ("DistillConfig", "window")}


@reads_all_of("demo-city")
def test_demo_city_reads_all(tmp_path: Path) -> None:
    counts = {"train": 4, "val": 2, "test": 3}
    small = {"out": tmp_path / "raw", "columns": 9, "rows": 9, "drivers": 3, "weeks": 1, "trips": counts}
    settings = DemoCityConfig.model_validate(small)
    with recorded_reads() as reads:
        run_demo_city(settings)
    for split, count in counts.items():  # the job goes through the splits by name: seen in what it writes
        assert len((settings.out / f"{split}.csv").read_text().splitlines()) == 1 + count
        reads.add(("TripCounts", split))
    assert reads == settings_of(DemoCityConfig)


@reads_all_of("prepare")
def test_prepare_reads_all(tmp_path: Path) -> None:
    raw = write_tiny_city(tmp_path / "raw")
    settings = PrepareConfig.model_validate(
        {"raw": raw, "out": tmp_path / "store", "zones": {"count": 2, "min_roads": 2}}
    )
    with recorded_reads() as reads:
        run_prepare(settings)
    assert settings_of(PrepareConfig) <= reads


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stand-in for Weights & Biases was started with."""
    stand_in = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    return stand_in.last


def reads_of_other_policies() -> set[Setting]:
    """What a request reads whose teacher is not waited for."""
    with recorded_reads() as reads:
        for policy in ("skip", "abort"):
            RetryPolicy.of(ClientConfig.model_validate({"on_failure": policy}))
    return reads


def reads_of_an_accelerator() -> set[Setting]:
    """What only accelerators read, without one."""
    settings = RuntimeConfig(amp="off", tf32=False)
    with recorded_reads() as reads:
        precision = Precision(settings, torch.device("cuda"))
    with float32_products(torch.device("cuda"), tf32=True), precision.float32_products():
        assert not torch.backends.cuda.matmul.allow_tf32
    return reads


def reads_of_a_run_that_diverges(data: Path, out: Path) -> set[Setting]:
    """What is read when steps are skipped."""
    settings = TrainConfig.model_validate(
        {
            "data": data,
            "out": out,
            "model": {"road_id_dim": 8, "road_attr_dim": 2},
            "optim": {"batch_size": 8, "learning_rate": 1e30, "warmup": 0, "max_bad_steps": 0},
            "runtime": {"device": "cpu"},
            "log": {"tensorboard": False},
        }
    )
    with recorded_reads() as reads, pytest.raises(TrainingError, match="max_bad_steps"):
        run_train(settings)
    return reads


@pytest.mark.integration
@reads_all_of("train", "predict", "export-student")
def test_train_and_predict_read_all(tmp_path: Path, running_teacher: TeacherStarter, wandb: dict[str, Any]) -> None:
    store = write_random_store(tmp_path / "store", trips=30)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    sampled = write_random_sample(tmp_path / "sampled", store)
    with running_teacher(tmp_path / "teacher") as server:
        settings = TrainConfig.model_validate(
            {
                "data": store.path,
                "teacher": server.address,
                "out": tmp_path / "run",
                "model": {"road_id_dim": 8, "road_attr_dim": 2, "mask_size": 64},
                "batch": {"train_trips": 20, "sampled": sampled, "sampled_trips": 5},
                "optim": {"epochs": 1, "batch_size": 8},
                "runtime": {"device": "cpu", "threads": 1},
                "log": {"wandb": "offline", "wandb_project": "p", "wandb_name": "n", "wandb_tags": ["t"]},
            }
        )
        with recorded_reads() as reads:
            run_train(settings)
    assert {name: wandb[name] for name in ("project", "name", "tags", "mode")} == {
        "project": "p", "name": "n", "tags": ["t"], "mode": "offline",
    }  # fmt: skip
    reads |= reads_of_an_accelerator() | reads_of_a_run_that_diverges(store.path, tmp_path / "diverging")
    reads |= reads_of_a_channel(tmp_path) | reads_of_other_policies()
    reads |= reads_of_the_log(next(job for job in JOBS if job.name == "train"), settings) | reads_of_tracing()
    assert settings_of(TrainConfig) <= reads

    places = {"data": store.path, "weights": tmp_path / "run" / "hoser.pth", "out": tmp_path / "out.npz"}
    prediction = PredictConfig.model_validate(places | {"device": "cpu"})
    of_trip = PredictConfig.model_validate(
        {name: places[name] for name in ("data", "weights")} | {"trip": (0,), "destination": 1, "times": (0,)}
    )
    with recorded_reads() as reads:
        predict.run(prediction)
        predict.run(of_trip)
    assert settings_of(PredictConfig) <= reads

    exported = ExportConfig.model_validate(places | {"out": tmp_path / "student.pt2"})
    with recorded_reads() as reads:
        export.run(exported)
    assert settings_of(ExportConfig) <= reads


@pytest.mark.integration
@reads_all_of("sample")
def test_sample_reads_all(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    """But for what only on_failure=skip reads, which it refuses."""
    store = write_random_store(tmp_path / "store", trips=30)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with running_teacher(tmp_path / "teacher") as server:
        settings = SampleConfig.model_validate(
            {"data": store.path, "teacher": server.address, "out": tmp_path / "out", "trips": 10}
        )
        with recorded_reads() as reads:
            sample.run(settings)
            with pytest.raises(ConfigError, match="replace=true"):
                sample.run(settings)
    reads |= reads_of_a_channel(tmp_path) | reads_of_other_policies()
    assert settings_of(SampleConfig) - reads == {("ClientConfig", "max_skipped_share")}


@pytest.mark.integration
@reads_all_of("headroom")
def test_headroom_reads_all(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    """But for what only on_failure=skip reads, which it refuses."""
    store = write_random_store(tmp_path / "store", trips=60)
    weights = write_run(tmp_path / "run", store, 1)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with running_teacher(tmp_path / "teacher") as server:
        settings = HeadroomConfig.model_validate(
            {"data": store.path, "teacher": server.address, "weights": weights, "trips": 10, "device": "cpu"}
        )
        with recorded_reads() as reads:
            headroom.run(settings)
    reads |= reads_of_a_channel(tmp_path) | reads_of_other_policies()
    assert settings_of(HeadroomConfig) - reads == {("ClientConfig", "max_skipped_share")}


@reads_all_of("evaluate", "compare")
def test_evaluate_and_compare_read_all(tmp_path: Path, wandb: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_random_store(tmp_path / "store", trips=30)
    weights = tmp_path / "weights.pth"
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), RoadNetwork.load(store))
    checkpoints.save_tensors(weights, upstream.export(model))
    for name in ("one", "two"):
        write_generated(tmp_path / f"trips-{name}", store, 5)
        settings = EvaluateConfig.model_validate(
            {
                "data": store.path,
                "trips": tmp_path / f"trips-{name}",
                "out": tmp_path / name,
                "weights": weights,
                "name": name,
                "device": "cpu",
                "bootstrap": {"draws": 100},
                "log": {"tensorboard": True, "wandb": "offline"},
            }
        )
        with recorded_reads() as reads:
            evaluation.run(settings)
        assert settings_of(EvaluateConfig) <= reads
    assert wandb["project"] == "lmtad-hoser-distill"
    comparison = CompareConfig(evaluations=(tmp_path / "one", tmp_path / "two"), out=tmp_path / "both")
    with recorded_reads() as reads:
        compare.run(comparison)
    assert settings_of(CompareConfig) <= reads


@reads_all_of("report", "bundle")
def test_report_and_bundle_read_all(city: Path, tmp_path: Path) -> None:
    """Of the city that the report's own tests have."""
    given: dict[str, Any] = {"evaluations": [city / "first", city / "second"], "runs": [city / "run"]}
    given |= {"data": city / "store", "comparison": city / "comparison", "out": tmp_path / "report"}
    with recorded_reads() as reads:
        report.run(ReportConfig.model_validate(given))
    assert settings_of(ReportConfig) <= reads
    with recorded_reads() as reads:
        bundle.run(BundleConfig(report=tmp_path / "report", out=tmp_path / "b.zip"))
    assert settings_of(BundleConfig) <= reads


@reads_all_of("pipeline")
def test_pipeline_reads_all(city: Path, tmp_path: Path) -> None:
    store = Store(city / "store")
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), RoadNetwork.load(store))
    (tmp_path / "models").mkdir()
    checkpoints.save_tensors(tmp_path / "models" / "a.pth", upstream.export(model))
    given = {"data": store.path, "models": tmp_path / "models", "out": tmp_path / "out", "splits": "val", "pairs": 5}
    settings = PipelineConfig.model_validate(given | {"bootstrap": {"draws": 100}})
    with recorded_reads() as reads:
        assert pipeline.run(settings) == 0
    assert settings_of(PipelineConfig) <= reads | settings_of(SearchConfig)  # its own test has those
