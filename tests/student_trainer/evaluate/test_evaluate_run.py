"""`evaluate` and `compare` as jobs: what they write, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.generated_trips import write_generated
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared import files
from shared.store import Store
from student_trainer.__main__ import main as _main
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import metrics, predictions
from student_trainer.evaluate import run as evaluation_run
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.runs import checkpoint as checkpoints

PAIRS = 15
MAKERS = "`student-trainer generate` or `student-trainer sample`"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store", trips=60)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*argv: object) -> int:
        monkeypatch.setattr("sys.argv", ["student-trainer", *map(str, argv)])
        return _main()

    return run


def weights_of(store: Store, path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), RoadNetwork.load(store))
    checkpoints.save_tensors(path, upstream.export(model))
    return path


def document(path: Path, name: str = "metrics.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / name).read_text())
    return found


def test_real_trips_are_perfect(store: Store, tmp_path: Path, main: Callable[..., int]) -> None:
    """But for the upstream metrics of other pairs, which have other trips in the same cells."""
    frame = write_generated(tmp_path / "gen", store, PAIRS, spoiled=0)
    real = store.trips("val").take(np.arange(PAIRS))
    times = [real.times[real.offsets[k] : real.offsets[k + 1]].tolist() for k in range(PAIRS)]
    frame.with_columns(pl.Series("times", times)).write_parquet(tmp_path / "gen" / "trips.parquet")
    assert main("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e") == 0
    found = document(tmp_path / "e")["metrics"]
    for name in ("arrival_rate", "od_cell_match_rate", "same_route_rate", "od_pair_match_rate_upstream"):
        assert found[name]["value"] == 1
    zero = [name for name in found if found[name]["group"] in ("local", "time") and not name.endswith("upstream")]
    assert len(zero) == 13
    for name in (*zero, *(name for name in found if name.endswith("_bits"))):
        assert found[name]["value"] == pytest.approx(0, abs=1e-12), name
    pairs = pl.read_parquet(tmp_path / "e" / "pairs.parquet")
    assert pairs["pair"].to_list() == list(range(PAIRS))
    assert pairs["distance_km"].to_numpy() == pytest.approx(pairs["real_distance_km"].to_numpy())


def test_what_is_written(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Values agree with the pairs' table, intervals hold them, and the same again gives the same."""
    frame = write_generated(tmp_path / "gen", store, PAIRS)
    weights = weights_of(store, tmp_path / "w.pth")
    arguments = ("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--weights", weights, "name=mine")
    assert main(*arguments, "--out", tmp_path / "e") == 0
    printed = capsys.readouterr()
    found = document(tmp_path / "e")
    assert json.loads(printed.out) == {"out": str(tmp_path / "e"), **metrics.flat(found)}
    assert all(name in printed.err for name in found["metrics"])
    assert found["name"] == "mine"
    pairs = pl.read_parquet(tmp_path / "e" / "pairs.parquet")
    arrived = (frame["status"] == "arrived").to_numpy()
    assert 0 < arrived.sum() < PAIRS
    values = found["metrics"]
    assert values["arrival_rate"]["value"] == pytest.approx(arrived.mean())
    assert values["dtw_km"]["value"] == pytest.approx(pairs["dtw_km"].mean())
    assert values["dtw_km_arrived"]["value"] == pytest.approx(pairs["dtw_km"].to_numpy()[arrived].mean())
    assert values["trip_duration_error_s_median"]["value"] == pytest.approx(pairs["duration_error_s"].median())
    for name, metric in values.items():
        assert metric.keys() == {"value", "low", "high", "n", "unit", "group", "better", "label", "description"}
        if not name.endswith("upstream") or name.startswith("next_road"):
            assert metric["low"] <= metric["value"] <= metric["high"], name
    steps = pl.read_parquet(tmp_path / "e" / "next_road.parquet")
    hits, counts = steps["hits"].to_numpy(), steps["hits_count"].to_numpy()
    assert hits.sum() / counts.sum() == pytest.approx(values["next_road_accuracy"]["value"])
    assert sum(found["reliability"]["count"]) == values["next_road_accuracy"]["n"] == steps["hits_count"].sum()
    for histogram in found["histograms"].values():
        assert len(histogram["edges"]) == len(histogram["real"]) == len(histogram["generated"]) == 100
        assert sum(histogram["real"]) == pytest.approx(1)
    assert main(*arguments, "--out", tmp_path / "again") == 0
    assert document(tmp_path / "again")["metrics"] == values


def test_values_go_to_tensorboard_and_wandb(
    store: Store, tmp_path: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_generated(tmp_path / "gen", store, PAIRS)
    sinks = ("log.tensorboard=true", "log.wandb=offline", "bootstrap.draws=100")
    assert main("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e", *sinks) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "e" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(metrics.flat(document(tmp_path / "e")))
    assert list((tmp_path / "e" / "wandb").glob("offline-run-*"))


def evaluated(store: Store, path: Path, main: Callable[..., int], name: str, **options: Any) -> Path:
    write_generated(path / f"{name}-gen", store, PAIRS, **options)
    weights = weights_of(store, path / f"{name}.pth", options.get("seed", 0))
    arguments = ("--data", store.path, "--trips", path / f"{name}-gen", "--out", path / name, "--weights", weights)
    assert main("evaluate", *arguments, f"name={name}") == 0
    return path / name


def test_comparison(store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """A much worse model is found to be worse; the same model is not different from itself."""
    good = evaluated(store, tmp_path, main, "good", spoiled=0.0)
    bad = evaluated(store, tmp_path, main, "bad", spoiled=1.0, seed=1)
    same = evaluated(store, tmp_path, main, "same", spoiled=0.0)
    capsys.readouterr()
    assert main("compare", "--evaluations", f"{good},{bad},{same}", "--out", tmp_path / "c") == 0
    verdicts = capsys.readouterr().err
    found = document(tmp_path / "c", "comparison.json")
    assert (found["baseline"], found["models"], found["pairs"]) == ("good", ["good", "bad", "same"], PAIRS)
    tables = {path: pl.read_parquet(path / "pairs.parquet") for path in (good, bad)}
    for name, column in (("arrival_rate", "arrived"), ("dtw_km", "dtw_km"), ("hausdorff_km", "hausdorff_km")):
        worse, equal = (found["metrics"][name]["comparisons"][model] for model in ("bad", "same"))
        means = {path: float(tables[path][column].cast(pl.Float64).mean() or 0) for path in tables}  # type: ignore[arg-type]
        assert worse["difference"] == pytest.approx(means[bad] - means[good])
        assert worse["trips"]["low"] <= worse["difference"] <= worse["trips"]["high"]
        assert (worse["level"], worse["direction"]) == ("trips", "worse")
        assert worse["trips"]["p_holm"] >= worse["trips"]["p"]
        assert equal["difference"] == 0 and equal["level"] == "none" and equal["trips"]["p_holm"] == 1
        assert worse["seeds"] is None and equal["seeds"] is None
    assert "baseline: good (one run); baseline=NAME chooses another" in verdicts
    assert "bad is worse than good on these trips" in verdicts
    assert verdicts.count("Verdicts on these trips cover chance in the trips, not in training (one run each).") == 1
    assert "same is" not in verdicts
    accuracy = found["metrics"]["next_road_accuracy"]["comparisons"]["bad"]["trips"]
    values = [document(path)["metrics"]["next_road_accuracy"]["value"] for path in (good, bad)]
    assert (accuracy["baseline"], accuracy["value"]) == pytest.approx(tuple(values))
    assert main("compare", "--evaluations", f"{good},{bad}", "--out", tmp_path / "d", "baseline=bad") == 0
    assert "good is better than bad on these trips" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roads": [[99]] * PAIRS, "times": [[0]] * PAIRS}, "unknown road"),
        ({"roads": [[]] * PAIRS, "times": [[]] * PAIRS}, "no road"),
        ({"times": [[0]] * PAIRS}, "one time for each road"),
        ({"status": ["arrived"] * PAIRS}, "says arrived where it is not"),
        ({"origin": np.zeros(PAIRS, np.int32)}, "does not start at its origin"),
        ({"source_trip": np.full(PAIRS, 10**6)}, "outside the 20 trips"),
        ({"source_trip": np.arange(PAIRS)[::-1].copy()}, "another origin or destination"),
        ({"pair": np.zeros(PAIRS, np.int64)}, "occur twice"),
        ({"pair": np.full(PAIRS, math.nan)}, "expected Int64, found Float64"),
        ({"departure": [None] * (PAIRS - 1) + [1]}, "values that are missing"),
    ],
)
def test_trips_that_cannot_be_are_refused(
    store: Store,
    tmp_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    if "roads" in changes:
        changes = changes | {"roads": pl.Series(changes["roads"], dtype=pl.List(pl.Int32))}
    if "times" in changes:
        changes = changes | {"times": pl.Series(changes["times"], dtype=pl.List(pl.Int64))}
    write_generated(tmp_path / "gen", store, PAIRS, changes=changes)
    assert main("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def one_bit(path: Path) -> None:
    """The number of values of a page becomes negative: polars 2.1 asks for 2 EiB, and ends its process."""
    data = path.read_bytes()
    place = data.index(bytes([44, 21, 2 * PAIRS, 21])) + 2  # Thrift: a structure, then its first number, zigzag
    path.write_bytes(data[:place] + bytes([2 * PAIRS + 1]) + data[place + 1 :])


def changed(name: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("trips.parquet", damaged, "missing or damaged"),
        ("trips.parquet", one_bit, "missing or damaged"),
        ("trips.parquet", Path.unlink, "missing or damaged"),
        ("summary.json", damaged, "cannot be read"),
        ("summary.json", Path.unlink, "student-trainer generate"),
        ("summary.json", changed("format", "hoser-generated/0"), "hoser-generated/1"),
        ("summary.json", changed("store", "another"), "another store"),
        ("summary.json", changed("split", "nights"), "names no split"),
        ("summary.json", changed("weights", {"file": "x"}), "does not say which weights"),
        (
            "trips.parquet",
            lambda path: pl.read_parquet(path).drop("roads").write_parquet(path),
            "lacks the columns roads",
        ),
        ("trips.parquet", lambda path: pl.read_parquet(path).clear().write_parquet(path), "holds no trip"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    store: Store,
    tmp_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    file: str,
    change: Callable[[Path], Any],
    message: str,
) -> None:
    write_generated(tmp_path / "gen", store, PAIRS)
    change(tmp_path / "gen" / file)
    assert main("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e") == 2
    assert message in capsys.readouterr().err


def test_an_evaluation_that_was_killed_is_made_again(
    store: Store, tmp_path: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had predicted is kept, and no other directory is taken for one."""
    write_generated(tmp_path / "gen", store, PAIRS)
    weights = weights_of(store, tmp_path / "w.pth")
    arguments = ("evaluate", "--data", store.path, "--trips", tmp_path / "gen", "--weights", weights, "--out")

    class Killed(BaseException):
        """Nobody catches it."""

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(evaluation_run, "_write", kill)
        with pytest.raises(Killed):
            main(*arguments, tmp_path / "e")
    (tmp_path / "e" / "next_road.parquet").touch()
    with monkeypatch.context() as known:
        known.setattr(predictions, "predict", kill)
        assert main(*arguments, tmp_path / "e") == 0
    (tmp_path / "mine" / "predictions").mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").touch()
    assert main(*arguments, tmp_path / "mine") == 2


def test_weights_of_another_city_are_refused(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_generated(tmp_path / "gen", store, PAIRS)
    weights = weights_of(store, tmp_path / "w.pth")
    values = torch.load(weights, weights_only=True)
    values = {name: value[:-1] if "road_id" in name else value for name, value in values.items()}
    torch.save(values, weights)
    arguments = ("--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e", "--weights", weights)
    assert main("evaluate", *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_comparisons_that_make_no_sense_are_refused(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (evaluated(store, tmp_path, main, name) for name in ("one", "two"))
    write_generated(tmp_path / "few", store, PAIRS - 1)
    assert main("evaluate", "--data", store.path, "--trips", tmp_path / "few", "--out", tmp_path / "e", "name=x") == 0
    capsys.readouterr()
    for evaluations, message in (
        (f"{one},{tmp_path / 'e'}", "not about the same OD pairs"),
        (f"{one},{one}", f"same name: one ({one}), one ({one}); give each"),
        (f"{one / 'metrics.json'},{two}", "metrics.json"),
        (f"{one}", "two or more"),
        (f"{one},{tmp_path / 'nowhere'}", "does not exist"),
        (f"{one},{two} baseline=nobody", "baseline nobody is not among the models one, two"),
    ):
        assert main("compare", "--evaluations", *evaluations.split(), "--out", tmp_path / "c") == 2
        assert message in capsys.readouterr().err
    before = pl.read_parquet(two / "pairs.parquet")
    before.drop("dtw_km").write_parquet(two / "pairs.parquet")
    assert main("compare", "--evaluations", f"{one},{two}", "--out", tmp_path / "c") == 2
    assert "lacks the columns dtw_km; evaluate again (`student-trainer evaluate`)" in capsys.readouterr().err
    before.write_parquet(two / "pairs.parquet")
    for name, value in (("training", "none"), ("floors", None), ("trips_at", 1)):
        text = (two / "metrics.json").read_text()
        changed(name, value)(two / "metrics.json")
        assert main("compare", "--evaluations", f"{one},{two}", "--out", tmp_path / "c") == 2
        assert f"lacks {name}; make it again" in capsys.readouterr().err
        (two / "metrics.json").write_text(text)
    changed("store", "another")(two / "metrics.json")
    assert main("compare", "--evaluations", f"{one},{two}", "--out", tmp_path / "c") == 2
    assert "different stores" in capsys.readouterr().err


def said_to_be_of(trips: Path, weights: Path) -> None:
    """As if they were generated with these weights."""
    changed("weights", {"file": str(weights), "sha256": files.file_digest(weights)})(trips / "summary.json")


def test_trips_of_other_weights_are_of_no_known_training(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """They would be told as another run of the arm whose weights were given; an exported form is no other weights."""
    plain, aided = (write_run(tmp_path / name, store, 1, teacher) for name, teacher in (("p", "none"), ("a", "h:1")))
    exported = weights_of(store, tmp_path / "p" / "hoser.pth")
    write_generated(tmp_path / "gen", store, PAIRS)

    def trained(of: Path, given: Path | None, **changes: Any) -> Any:
        said_to_be_of(tmp_path / "gen", of)
        for name, value in changes.items():
            changed(name, value)(tmp_path / "gen" / "summary.json")
        more = () if given is None else ("--weights", given)
        asked = ("--data", store.path, "--trips", tmp_path / "gen", "--out", tmp_path / "e", "bootstrap.draws=100")
        assert main("evaluate", *asked, *more) == 0
        return document(tmp_path / "e")["training"]

    assert trained(plain, None)["teacher"] == trained(plain, plain)["teacher"] == ""
    assert trained(exported, plain)["teacher"] == trained(plain, exported)["teacher"] == ""
    assert "which the trips were generated with" not in capsys.readouterr().err
    assert trained(plain, aided) is None
    printed = capsys.readouterr().err
    assert f"{aided} is not {plain}, which the trips were generated with" in printed
    assert "this evaluation says of no training" in printed
    assert trained(plain, plain, method="shortest_path", weights=None) is None, "a rule was not trained"


def test_one_run_under_two_names_is_refused_and_other_steps_are_told(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"plain": write_run(tmp_path / "p", store, 1, steps=52), "copy": tmp_path / "p" / "checkpoints" / "best.pt"}
    runs["aided"] = write_run(tmp_path / "a", store, 1, "h:1", steps=806)
    for name, weights in runs.items():
        write_generated(tmp_path / f"gen-{name}", store, PAIRS)
        said_to_be_of(tmp_path / f"gen-{name}", weights)
        given = ("--trips", tmp_path / f"gen-{name}", "--out", tmp_path / name, "bootstrap.draws=100")
        assert main("evaluate", "--data", store.path, *given) == 0
    capsys.readouterr()
    places = {name: tmp_path / name for name in runs}
    asked = ("--out", tmp_path / "c", "bootstrap.draws=100", "--evaluations")
    assert main("compare", *asked, ",".join(map(str, places.values()))) == 2
    assert "gen-plain and gen-copy have the same weights" in capsys.readouterr().err
    assert main("compare", *asked, f"{places['aided']},{places['plain']}") == 0
    note = "gen-aided trained 806 steps, gen-plain 52: part of a difference may be the steps'; see docs/trips.md"
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "baseline: gen-plain (one run without a teacher); baseline=NAME chooses another", f"note: {note}",
    ]  # fmt: skip
    assert f"{note}." in document(tmp_path / "c", "comparison.json")["notes"]


def test_what_is_replaced_is_told(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it was of other trips or weights; the same again, or with weights beside, loses nothing."""
    for name in ("one", "two"):
        write_generated(tmp_path / name, store, PAIRS)
    weights = [weights_of(store, tmp_path / f"{seed}.pth", seed) for seed in (0, 1)]

    def replaced(trips: str, *more: object) -> bool:
        asked = ("--trips", tmp_path / trips, "--out", tmp_path / "e", "bootstrap.draws=100")
        assert main("evaluate", "--data", store.path, *asked, *more) == 0
        printed = capsys.readouterr().err
        held = f"{tmp_path / 'e'} held the evaluation of one ({tmp_path / 'one'}), which is replaced"
        return held in printed

    assert not replaced("one") and not replaced("one")
    assert not replaced("one", "--weights", weights[0])
    assert replaced("one", "--weights", weights[1])
    assert replaced("one"), "its next roads are lost"
    assert replaced("two") and not replaced("two")


def test_trips_that_are_no_directory_of_trips_are_refused(
    store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_generated(tmp_path / "gen", store, PAIRS)
    for place, message in (
        ("gen/trips.parquet", f"is a file; --trips takes the directory that {MAKERS} wrote, as {tmp_path / 'gen'}"),
        ("nowhere", f"nowhere does not exist; make them with {MAKERS}"),
        (".", f"holds no trips (no summary.json, no sampled.json); make them with {MAKERS}"),
    ):
        given = ("--data", store.path, "--trips", tmp_path / place, "--out", tmp_path / "e")
        assert main("evaluate", *given) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "e").exists()
