"""Comparison and report of arms over seeds, and reports of trees that have moved."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.report_city import call, city
from support.seeded_city import add_seeds

from student_trainer.compare import run as compare
from student_trainer.report import content

__all__ = ["city"]


@pytest.fixture(scope="module")
def seeded(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seeded")
    evaluations = add_seeds(city, root)
    assert call("compare", "--evaluations", evaluations, "--out", root / "comparison", "bootstrap.draws=100") == 0
    runs = ",".join(str(root / arm / f"seed{seed}") for arm in ("distilled", "vanilla") for seed in (1, 2))
    given = ("--evaluations", evaluations, "--comparison", root / "comparison", "--runs", runs)
    assert call("report", "--data", city / "store", *given, "--out", root / "report") == 0
    return root


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def data_of(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def test_seeds_of_one_arm_are_not_compared(seeded: Path) -> None:
    """The run without a teacher is the baseline, though the other is named first; a rule is told of, not tested."""
    found = document(seeded / "comparison" / "comparison.json")
    assert [(arm["name"], arm["models"]) for arm in found["arms"]] == [
        ("vanilla", ["vanilla-s1", "vanilla-s2"]),
        ("distilled", ["distilled-s1", "distilled-s2"]),
        ("shortest-path", ["shortest-path"]),
    ]
    assert found["baseline"] == "vanilla"
    assert {name for metric in found["metrics"].values() for name in metric["comparisons"]} == {"distilled"}
    assert found["order"][:3] == ["next_road_accuracy", "next_road_choice_accuracy", "arrival_rate"]
    evaluations = {name: document(seeded / name / "metrics.json") for name in ("vanilla-s1", "vanilla-s2")}
    for metric, values in found["metrics"].items():
        own = [evaluation["metrics"][metric]["value"] for evaluation in evaluations.values()]
        assert values["arms"]["vanilla"]["value"] == pytest.approx(np.mean(own))
        assert values["arms"]["vanilla"]["sd_over_runs"] == pytest.approx(np.std(own, ddof=1))
    for metric in found["order"]:
        difference = found["metrics"][metric]["comparisons"]["distilled"]
        assert difference["level"] in ("trips", "none"), "two seeds cannot show anything over seeds"
        assert difference["seeds"]["is_paired"] and difference["seeds"]["smallest_p"] == 0.5
        means = [found["metrics"][metric]["arms"][arm]["value"] for arm in ("distilled", "vanilla")]
        assert difference["difference"] == pytest.approx(means[0] - means[1])
    assert found["floors"].keys() == {"nearest_to_destination", "first_order_markov", "second_order_markov"}


def test_references_are_told_after_the_verdicts(seeded: Path) -> None:
    found = document(seeded / "comparison" / "comparison.json")
    lines = compare.references_of(found)
    assert "Arrived, for reference: 100.00 % (shortest-path)." in lines
    floor = found["floors"]["nearest_to_destination"]["values"]["next_road_choice_accuracy"]
    expected = f"{100 * floor:.2f} % (the candidate nearest to the destination)."
    assert f"Next road right, where there is a choice, for reference: {expected}" in lines


def test_the_page_speaks_of_arms(seeded: Path) -> None:
    data = data_of(seeded / "report" / "report.html")
    assert [arm["name"] for arm in data["arms"]] == ["vanilla", "distilled", "shortest-path"]
    assert data["names"] == ["vanilla-s1", "vanilla-s2", "distilled-s1", "distilled-s2", "shortest-path"]
    assert data["histograms"].keys() == data["metrics"]["edr"]["arms"].keys() == {a["name"] for a in data["arms"]}
    assert data["colours"] == {"vanilla": "#0072B2", "distilled": "#D55E00", "shortest-path": "#8A9099"}
    sides = [document(seeded / f"vanilla-s{s}" / "metrics.json")["histograms"]["distance"] for s in (1, 2)]
    mean = np.mean([side["generated"] for side in sides], axis=0)
    shown = data["histograms"]["vanilla"]["distance"]
    width = round(shown["edges"][1] / sides[0]["edges"][1])
    whole = len(shown["edges"]) * width - width
    assert shown["edges"] == sides[0]["edges"][: whole + 1 : width]
    joined = [*mean[:whole].reshape(-1, width).sum(axis=1), mean[whole:].sum()]
    assert shown["generated"] == pytest.approx(joined)
    assert sum(np.cumsum(shown["real"]) < 0.995 * sum(shown["real"])) <= content.SHOWN_BINS < len(mean)


def test_other_numbers_of_steps_are_told_beside_the_baseline(city: Path, seeded: Path, tmp_path: Path) -> None:
    """With a comparison and without; evaluations that do not know the steps of their run say nothing."""
    assert data_of(seeded / "report" / "report.html")["steps_note"] == ""
    for name, steps in (("distilled-s1", 806), ("vanilla-s1", 52)):
        shutil.copytree(seeded / name, tmp_path / name)
        found = document(seeded / name / "metrics.json")
        found["training"]["steps"] = steps
        (tmp_path / name / "metrics.json").write_text(json.dumps(found))
    both = f"{tmp_path / 'distilled-s1'},{tmp_path / 'vanilla-s1'}"
    assert call("compare", "--evaluations", both, "--out", tmp_path / "c", "bootstrap.draws=100") == 0
    note = "distilled-s1 trained 806 steps, vanilla-s1 52: part of a difference may be the steps'; see docs/trips.md"
    for comparison in ((), ("--comparison", tmp_path / "c")):
        given = ("--evaluations", both, *comparison, "--out", tmp_path / "report")
        assert call("report", "--data", city / "store", *given) == 0
        assert data_of(tmp_path / "report" / "report.html")["steps_note"] == note
    found = data_of(tmp_path / "report" / "report.html")["comparison"]
    assert found["notes"][0] == f"{note}."
    assert found["coverage"] == "Verdicts on these trips cover chance in the trips, not in training (one run each)."


def test_runs_of_one_name_are_told_apart(seeded: Path) -> None:
    data = data_of(seeded / "report" / "report.html")
    assert data["curve_arms"] == {
        "distilled/seed1": "distilled",
        "distilled/seed2": "distilled",
        "vanilla/seed1": "vanilla",
        "vanilla/seed2": "vanilla",
    }
    assert data["curves"]["distilled/seed1"] != data["curves"]["vanilla/seed1"]
    assert data["curve_floors"]["val/accuracy"]["label"].startswith("floor: ")


def test_what_is_left_to_learn_is_a_line_beside_the_curves(city: Path, seeded: Path, tmp_path: Path) -> None:
    """Where a run has measured it: the best epoch and the gain of the stack, means over the runs of an arm."""
    from support.trained_runs import write_run

    from shared.store import Store

    store, runs = Store(city / "store"), []
    gains = {"accuracy": {"value": 0.02}, "nll": {"value": -0.1}}
    for seed, accuracy in ((1, 0.8), (2, 0.84)):
        found = {"ceiling": "stacked", "gains": {"stacked": gains, "student_own": {}}}
        for teacher, left in (("none", None), ("host:1", found)):
            run = tmp_path / f"{teacher[:4]}{seed}"
            write_run(run, store, seed, teacher=teacher)
            summary = {"best": {"accuracy": accuracy, "nll": 0.5}, "headroom": left}
            (run / "summary.json").write_text(json.dumps(summary))
            runs.append(str(run))
    given = ("--data", city / "store", "--evaluations", seeded / "rule", "--runs", ",".join(runs))
    assert call("report", *given, "--out", tmp_path / "report") == 0
    ceilings = data_of(tmp_path / "report" / "report.html")["curve_ceilings"]
    assert ceilings.keys() == {"val/accuracy", "val/nll"}
    ((accuracy,), (nll,)) = ceilings.values()
    assert accuracy["value"] == pytest.approx(0.84) and nll["value"] == pytest.approx(0.4)
    assert accuracy["label"] == f"{accuracy['arm']}, ceiling"
    assert data_of(seeded / "report" / "report.html")["curve_ceilings"] == {}
    (Path(runs[1]) / "summary.json").write_text('{"headroom": {"ceiling": "stacked"}}')
    assert call("report", *given, "--out", tmp_path / "other") == 2


def test_a_floor_is_not_drawn_beside_validation_on_a_part(city: Path, seeded: Path, tmp_path: Path) -> None:
    from support.trained_runs import write_run

    from shared.store import Store

    write_run(tmp_path / "part", Store(city / "store"), 1, batch={"val_trips": 5})
    given = ("--evaluations", seeded / "rule", "--runs", tmp_path / "part", "--out", tmp_path / "report")
    assert call("report", "--data", city / "store", *given) == 0
    assert data_of(tmp_path / "report" / "report.html")["curve_floors"] == {}


def test_a_directory_named_twice_is_refused(
    city: Path, seeded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = seeded / "vanilla" / "seed1"
    given = ("--evaluations", seeded / "rule", "--runs", f"{run},{run}", "--out", tmp_path / "report")
    assert call("report", "--data", city / "store", *given) == 2
    assert "named twice" in capsys.readouterr().err


def test_a_report_is_made_from_anywhere_and_after_a_move(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate` was given relative paths; then the tree moves; then only the evaluation does; then the trips go."""
    shutil.copytree(city / "trips-first", tmp_path / "tree" / "trips")
    monkeypatch.chdir(tmp_path / "tree")
    given = ("--data", city / "store", "--trips", "trips", "--out", "deep/evaluation", "bootstrap.draws=100")
    assert call("evaluate", *given) == 0
    monkeypatch.chdir(tmp_path)
    report = ("report", "--data", city / "store", "map_pairs=5")
    assert call(*report, "--evaluations", "tree/deep/evaluation", "--out", "one") == 0
    (tmp_path / "tree").rename(tmp_path / "moved")
    assert call(*report, "--evaluations", "moved/deep/evaluation", "--out", "two") == 0
    (tmp_path / "moved").rename(tmp_path / "tree")
    (tmp_path / "tree" / "deep" / "evaluation").rename(tmp_path / "alone")
    assert call(*report, "--evaluations", "alone", "--out", "three") == 0
    (tmp_path / "tree").rename(tmp_path / "gone")
    capsys.readouterr()
    assert call(*report, "--evaluations", "alone", "--out", "four") == 2
    message = capsys.readouterr().err
    assert "the trips of alone are not at" in message and str(tmp_path / "tree" / "trips") in message
