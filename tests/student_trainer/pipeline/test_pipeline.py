"""The pipeline: all is done once, again only where something has changed, and a failure stops nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared.errors import ConfigError
from shared.store import Store
from student_trainer.__main__ import main
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import run as evaluation
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.pipeline import models
from student_trainer.runs import checkpoint as checkpoints

QUICK = ("pairs=6", "bootstrap.draws=100", "splits=test", "search.max_steps=20")
EVERYTHING = 3 + 3 + 1 + 1
"""Two models and shortest paths: trips, evaluations, a comparison, a report."""


def write_weights(path: Path, store: Store, seed: int) -> None:
    torch.manual_seed(seed)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), RoadNetwork.load(store))
    checkpoints.save_tensors(path, upstream.export(model))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose pipeline has run."""
    root = tmp_path_factory.mktemp("pipeline")
    store = write_random_store(root / "store", trips=40)
    vertices = np.repeat(store.network("line_centroid"), 2, axis=0) + np.tile([[0, 0], [1e-4, 1e-4]], (30, 1))
    np.save(root / "store" / "network" / "vertices.npy", vertices)
    np.save(root / "store" / "network" / "vertex_offsets.npy", np.arange(0, 61, 2))
    np.save(root / "store" / "network" / "length.npy", np.full(30, 50.0))
    (root / "models").mkdir()
    for seed, name in enumerate(("vanilla", "distilled")):
        write_weights(root / "models" / f"{name}.pth", store, seed)
    assert call(root, "--out", root / "out") == 0
    yield root


@pytest.fixture
def city(done: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere: places decide nothing."""
    shutil.copytree(done, tmp_path / "city")
    return tmp_path / "city"


def call(root: Path, *arguments: object) -> int:
    usual = {"--data": root / "store", "--models": root / "models"}
    places = [text for flag, place in usual.items() if flag not in arguments for text in (flag, place)]
    given = (*places, *arguments, *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["student-trainer", "pipeline", *map(str, given)])
        return main()


def outcomes(root: Path, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, list[str]]:
    """Names of items by what became of them."""
    capsys.readouterr()
    assert call(root, "--out", root / "out", *arguments) == code
    found: dict[str, list[str]] = {}
    for name, outcome in json.loads(capsys.readouterr().out)["outcomes"].items():
        found.setdefault(outcome, []).append(name.partition("/")[2])
    return found


def test_all_is_there_and_nothing_is_done_twice(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = done / "out" / "test-seed42"
    for model in ("vanilla", "distilled", "shortest-path"):
        assert (place / "trips" / model / "trips.csv").exists()
        assert json.loads((place / "evaluations" / model / "metrics.json").read_text())["name"] == model
    comparison = json.loads((place / "comparison" / "comparison.json").read_text())
    assert comparison["models"] == ["vanilla", "distilled", "shortest-path"]
    assert "vanilla" in (place / "report" / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert {kind: len(names) for kind, names in outcomes(done, capsys).items()} == {"was done": EVERYTHING}
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_elsewhere_it_is_still_done(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {kind: len(names) for kind, names in outcomes(city, capsys).items()} == {"was done": EVERYTHING}


def test_other_weights_under_the_same_name_redo_what_depends_on_them(
    city: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(city / "models" / "distilled.pth", Store(city / "store"), seed=7)
    found = outcomes(city, capsys)
    assert set(found["done"]) == {"trips/distilled", "evaluations/distilled", "comparison", "report"}
    assert len(found["was done"]) == EVERYTHING - 4
    assert outcomes(city, capsys).keys() == {"was done"}


@pytest.mark.parametrize(
    ("setting", "redone"),
    [("map_pairs=5", {"report"}), ("significance=0.01", {"comparison", "report"}), ("search.width=2", None)],
)
def test_other_settings_redo_what_reads_them(
    city: Path, capsys: pytest.CaptureFixture[str], setting: str, redone: set[str] | None
) -> None:
    found = outcomes(city, capsys, setting)
    assert set(found["done"]) == redone if redone else len(found["done"]) == EVERYTHING


def test_other_code_redoes_what_it_made(
    city: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "code_version", lambda: "another")
    found = outcomes(city, capsys)
    assert {name.partition("/")[0] for name in found["done"]} == {"evaluations", "comparison", "report"}


def test_a_lost_result_is_made_again(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (city / "out" / "test-seed42" / "trips" / "vanilla" / "trips.parquet").unlink()
    assert "trips/vanilla" in outcomes(city, capsys)["done"]


def test_a_failure_is_told_at_the_end_and_stops_only_what_needs_it(
    city: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(city / "models" / "other-city.pth", write_random_store(city / "elsewhere", trips=12, seed=3), seed=0)
    values = torch.load(city / "models" / "other-city.pth", weights_only=True)
    values = {name: value[:-1] if "road_emb" in name or "road_id" in name else value for name, value in values.items()}
    torch.save(values, city / "models" / "other-city.pth")
    found = outcomes(city, capsys, code=1)
    assert found["failed"] == ["trips/other-city"]
    assert found["skipped"] == ["evaluations/other-city"]
    assert len(found["was done"]) == EVERYTHING, "the rest is compared"
    (city / "models" / "other-city.pth").unlink()
    assert set(outcomes(city, capsys)) <= {"was done", "done"}


def test_phases_and_force(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(city / "models" / "distilled.pth", Store(city / "store"), seed=8)
    assert outcomes(city, capsys, "--only", "generate")["done"] == ["trips/distilled"]
    found = outcomes(city, capsys, "--only", "report", code=1)
    assert found["skipped"] == ["report"]
    assert set(outcomes(city, capsys, "--only", "evaluate,compare,report")["done"]) == {
        "evaluations/distilled", "comparison", "report",
    }  # fmt: skip
    assert len(outcomes(city, capsys, "--only", "generate", "--force")["done"]) == 3


def test_interrupted_it_goes_on(
    city: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Callable[..., Any] = evaluation.evaluate
    calls = []

    def interrupted(settings: Any) -> Any:
        calls.append(settings)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(settings)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        assert call(city, "--out", city / "out", "--only", "evaluate", "--force") == 130
    found = outcomes(city, capsys, "--only", "evaluate")
    assert (len(found["done"]), len(found["was done"])) == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "{root}/store"), "holds no model"),
        (("baseline=nobody",), "baseline nobody is not among the models distilled, shortest-path, vanilla"),
        (("--only", "dance"), "only"),
        (("method=shortest_path",), "needs no models"),
        (("--data", "{root}/models"), "is not a store"),
    ],
)
def test_what_makes_no_sense_is_refused(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert call(done, "--out", tmp_path / "out", *(a.replace("{root}", str(done)) for a in arguments)) == 2
    assert message in capsys.readouterr().err


def test_runs_are_found_and_named_by_their_directories(tmp_path: Path) -> None:
    store = write_random_store(tmp_path / "store", trips=12)
    for place in ("a/b", "vanilla"):
        write_run(tmp_path / "models" / place, store, seed=1, optim={"epochs": len(place)})
    write_weights(tmp_path / "models" / "c.pth", store, seed=0)
    found = models.find(tmp_path / "models", store, "", True).models
    assert [model.name for model in found] == ["vanilla", "c", "a-b", "shortest-path"]
    assert [model.run is None for model in found] == [False, True, False, True]
    (tmp_path / "models" / "vanilla.pth").write_text("x")
    with pytest.raises(ConfigError, match="both be called vanilla"):
        models.find(tmp_path / "models", store, "", True)


def test_the_run_without_a_teacher_is_the_baseline(tmp_path: Path) -> None:
    """Whatever the names say; seeds are one arm; runs of another store and trials are told of and left out."""
    store, other = (write_random_store(tmp_path / name, trips=12, seed=seed) for seed, name in enumerate("so"))
    folder = tmp_path / "models"
    for seed in (1, 2):
        for name, teacher in (("aided", "h:1"), ("plain", "none")):
            write_run(folder / f"{name}-s{seed}", store, seed, teacher)
            (folder / f"{name}-s{seed}" / "summary.json").touch()
    (folder / "aided-s2" / "summary.json").unlink()
    write_run(folder / "elsewhere", other, 1)
    write_run(folder / "study" / "optuna_trials" / "trial_000_vanilla_complete" / "seed1", store, 1)
    found = models.find(folder, store, "", True)
    assert [arm.name for arm in found.arms] == ["plain", "aided", "shortest-path"]
    assert [model.name for model in found.models] == ["plain-s1", "plain-s2", "aided-s1", "aided-s2", "shortest-path"]
    assert found.lines() == [
        "arm plain: plain-s1, plain-s2, seeds 1 2",
        "arm aided: aided-s1, aided-s2, seeds 1 2",
        "arm shortest-path: shortest-path",
        "baseline: plain (2 runs without a teacher); baseline=NAME chooses another",
        "left out: 1 trials of studies",
        f"left out: elsewhere ({folder / 'elsewhere' / 'checkpoints' / 'best.pt'}), trained on another store than "
        f"{store.path}",
        "note: aided-s2 has not finished, its best weights so far are taken; go on with --resume",
    ]
    assert models.find(folder, store, "aided", False).arms[0].name == "aided"
    write_weights(folder / "plain-s1" / "hoser.pth", store, seed=1)
    assert [model.name for model in models.find(folder / "plain-s1", store, "", False).models] == ["plain-s1"]
    with pytest.raises(ConfigError, match=r"holds no model of .*another store"):
        models.find(folder / "elsewhere", store, "", True)


def test_a_copy_of_a_run_is_not_another_run(tmp_path: Path) -> None:
    """It is left out, with a line: the baseline stays, or the first by name. Steps that differ are told."""
    store, folder = write_random_store(tmp_path / "store", trips=12), tmp_path / "models"
    write_run(folder / "r1", store, 42, steps=52)
    write_run(folder / "aided", store, 42, "h:1", steps=806)
    for copy in ("r1-backup", "a-backup"):
        shutil.copytree(folder / "r1", folder / copy)
    shutil.copyfile(folder / "r1" / "checkpoints" / "best.pt", folder / "best.pth")
    write_weights(folder / "c.pth", store, seed=0)
    found = models.find(folder, store, "r1", False)
    assert found.lines() == [
        "arm r1: r1, seed 42",
        "arm aided: aided, seed 42",
        "arm c: c",
        "baseline: r1 (one run without a teacher); baseline=NAME chooses another",
        "note: aided trained 806 steps, r1 52: part of a difference may be the steps'; see docs/trips.md",
        *(f"left out: {copy}, whose weights are those of r1" for copy in ("a-backup", "best", "r1-backup")),
    ]
    assert [model.name for model in models.find(folder, store, "", False).models] == ["a-backup", "aided", "c"]


def test_what_is_not_asked_for_is_not_told(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(done, "--out", tmp_path / "out", "--only", "report") == 1
    printed = capsys.readouterr()
    (place,) = {name.partition("/")[0] for name in json.loads(printed.out)["outcomes"]}
    assert not re.search(f"{place}/(trips|comparison)", printed.err), printed.err
    assert [line for line in printed.err.splitlines() if "not asked for" in line] == ["7 not asked for, 1 skipped"]
    assert "1 of 1: test-seed42/report: skipped: needs test-seed42/evaluations/vanilla" in printed.err
    assert call(done, "--out", tmp_path / "out", "--only", "report", "--dry-run") == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split() for line in told if line.startswith(place)] == [[f"{place}/report", "to", "do"]]


def test_a_model_of_another_store_stops_nothing(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(city / "models" / "demo", write_random_store(city / "elsewhere", trips=12, seed=3), 1)
    assert outcomes(city, capsys).keys() == {"was done"}


def test_damaged_weights_fail_and_the_rest_is_compared(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (city / "models" / "broken.pth").write_bytes(b"damaged")
    capsys.readouterr()
    assert call(city, "--out", city / "out") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["outcomes"]["test-seed42/trips/broken"] == "failed"
    assert len(json.loads(printed.out)["reports"]) == 1
    assert re.search(r"test-seed42/comparison +was done +without broken$", printed.err, re.MULTILINE)
    assert re.search(r"test-seed42/trips/broken +failed ", printed.err)
    assert not re.search(r"test-seed42/trips/vanilla +was done$", printed.err, re.MULTILINE), "the log has told of it"
    verdicts = re.findall(r"^  (Next road right|Arrived).*distilled", printed.err, re.MULTILINE)
    assert len(verdicts) == 3 and printed.err.rstrip().endswith("test-seed42/report/report.html")


def test_a_dry_run_tells_and_writes_nothing(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(city / "models" / "distilled.pth", Store(city / "store"), seed=7)
    before = {path: path.stat().st_mtime_ns for path in city.rglob("*")}
    found = outcomes(city, capsys, "--dry-run")
    assert set(found["to do"]) == {"trips/distilled", "evaluations/distilled", "comparison", "report"}
    assert len(found["was done"]) == EVERYTHING - 4
    assert {path: path.stat().st_mtime_ns for path in city.rglob("*")} == before
    assert set(outcomes(city, capsys)["done"]) == set(found["to do"])
