"""The report's files: what is in them, that nothing can break out of them, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.command_lines import parsed_settings
from support.generated_trips import write_generated
from support.report_city import PAIRS, call, city, report

from shared.store import Store
from student_trainer.report import figures, html
from student_trainer.report import study as studies

__all__ = ["city"]

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def data_of(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_needs_nothing_from_elsewhere(city: Path) -> None:
    text = (city / "report" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text
    assert not re.findall(r"/\*(?:STYLE|SCRIPT|DATA)\*/|<!--TITLE-->", text)


def test_the_page_holds_what_was_measured(city: Path) -> None:
    data = data_of(city / "report" / "report.html")
    assert data["names"] == ["first", "second"]
    for name in data["names"]:
        metrics = json.loads((city / name / "metrics.json").read_text())["metrics"]
        assert {key: metric["arms"][name]["value"] for key, metric in data["metrics"].items()} == {
            key: metric["value"] for key, metric in metrics.items()
        }
    assert data["comparison"] == json.loads((city / "comparison" / "comparison.json").read_text())
    assert data["curves"]["run"]["train/loss_next_road"] == [[1, 2, 3], [1, 0.5, 1 / 3]]
    assert any(line.startswith("student-trainer evaluate") for line in data["commands"])


def test_its_commands_make_the_same_again(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths with blanks, brackets, `#` and `*`, and settings that are none or no text."""
    made: dict[str, list[Any]] = {}
    for line in data_of(city / "report" / "report.html")["commands"]:
        program, job, *argv = shlex.split(line)
        if job != "generate":  # whose settings the test has made up
            made.setdefault(job, []).append(parsed_settings(program, [job, *argv], monkeypatch).model_dump(mode="json"))
    assert made == {
        "evaluate": [json.loads((city / n / "metrics.json").read_text())["settings"] for n in ("first", "second")],
        "compare": [json.loads((city / "comparison" / "comparison.json").read_text())["settings"]],
    }
    assert made["evaluate"][0]["data"] == str(city / "store")


def test_a_models_name_is_no_formula(city: Path, tmp_path: Path) -> None:
    content = json.dumps(data_of(city / "report" / "report.html")).replace('"second"', json.dumps("cost$\\no_$"))
    assert figures.write(json.loads(content), tmp_path)
    assert any("cost$\\no_$" in path.read_text() for path in tmp_path.glob("*.svg"))


def test_the_map_holds_roads_and_trips(city: Path) -> None:
    """Within half a step of the store's own vertices; every kind of pair is there."""
    store, data = Store(city / "store"), data_of(city / "report" / "report.html")["map"]
    network = data["network"]
    steps = np.frombuffer(base64.b64decode(network["vertices"]), "<u2").reshape(-1, 2)
    metres = (store.network("vertices") - network["corner"]) * network["metres_per_degree"]
    assert np.abs(steps[:, ::-1] * network["unit"] - metres).max() <= network["unit"] / 2 + 1e-6
    counts = np.frombuffer(base64.b64decode(network["counts"]), "<u2")
    assert counts.tolist() == np.diff(store.network("vertex_offsets")).tolist()
    files = {name: city / f"trips-{name}" / "trips.parquet" for name in ("first", "second")}
    trips = {name: pl.read_parquet(path, glob=False) for name, path in files.items()}
    for pair in data["pairs"]:
        for name, frame in trips.items():
            row = frame.row(pair["pair"], named=True)
            made = pair["models"][name]
            assert (made["roads"], made["status"]) == (row["roads"], row["status"])
            assert made["times"] == [time - row["departure"] for time in row["times"]]
    assert len(data["pairs"]) == PAIRS
    few = city / "few"
    assert report(city, few, "map_pairs=12") == 0
    chosen = data_of(few / "report.html")["map"]["pairs"]
    assert len(chosen) == 12
    assert sum(not all(m["arrived"] for m in pair["models"].values()) for pair in chosen) >= 3
    worst = max(data["pairs"], key=lambda pair: max(m["metrics"]["hausdorff_km"] for m in pair["models"].values()))
    assert worst["pair"] in {pair["pair"] for pair in chosen}


def test_nothing_breaks_out_of_the_page(city: Path, tmp_path: Path) -> None:
    assert report(city, tmp_path / "r", f"title={EVIL}") == 0
    text = (tmp_path / "r" / "report.html").read_text()
    assert EVIL not in text and "<img" not in text
    assert data_of(tmp_path / "r" / "report.html")["title"] == EVIL
    assert text.count("<script") == 2
    value = {"a": [EVIL, float("nan"), float("inf")], "b": "\u2028<!--"}
    assert "<" not in html.embedded(value) and "\u2028" not in html.embedded(value)
    assert json.loads(html.embedded(value)) == {"a": [EVIL, None, None], "b": "\u2028<!--"}


def test_every_figure_is_there_twice(city: Path) -> None:
    names = {path.stem for path in (city / "report" / "figures").iterdir()}
    assert {"distribution-distance", "statuses", "curve-train-loss-next-road", "curve-val-accuracy"} <= names
    for name in names:
        assert (city / "report" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (city / "report" / "figures" / f"{name}.svg").read_text()


def test_trips_are_geojson(city: Path) -> None:
    """RFC 7946: types, longitude before latitude, lines of two or more positions, no other reference system."""
    store = Store(city / "store")
    low, high = store.network("vertices").min(axis=0), store.network("vertices").max(axis=0)
    for name in ("real", "model-first", "model-second"):
        document = json.loads((city / "report" / "trips" / f"{name}.geojson").read_text())
        assert document.keys() == {"type", "features"} and document["type"] == "FeatureCollection"
        assert [feature["properties"]["pair"] for feature in document["features"]] == list(range(PAIRS))
        for feature in document["features"]:
            assert feature.keys() == {"type", "geometry", "properties"} and feature["type"] == "Feature"
            kind, points = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            assert kind == "LineString" and len(points) >= 2
            places = np.array(points)[:, ::-1]
            assert (places >= low - 1e-6).all() and (places <= high + 1e-6).all()
            roads = feature["properties"]["roads"]
            first = store.network("vertices")[store.network("vertex_offsets")[roads[0]]]
            assert places[0] == pytest.approx(first, abs=1e-6)


def test_a_bundle_holds_everything_and_says_so(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("vanilla", "distilled"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hoser.pth").write_bytes(name.encode() * 100)
    weights = ",".join(str(tmp_path / name / "hoser.pth") for name in ("vanilla", "distilled"))
    for out in ("a.zip", "b.zip"):
        arguments = ("--report", city / "report", "--weights", weights, "--runs", city / "run")
        assert call("bundle", *arguments, "--out", tmp_path / out) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert set(archive.namelist()) == {"manifest.json", *manifest["files"]}
        for name, entry in manifest["files"].items():
            content = archive.read(name)
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])
            assert not name.startswith("/") and ".." not in name.split("/")
        wanted = (
            "report/report.html",
            "report/trips/real.geojson",
            "weights/vanilla/hoser.pth",
            "weights/distilled/hoser.pth",
        )
        assert {*wanted, "runs/run/metrics.jsonl"} <= set(manifest["files"])
        assert archive.read("weights/distilled/hoser.pth").startswith(b"distilled")


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--evaluations", "{root}/first,{root}/first"), "same name"),
        (("--evaluations", "{root}/nowhere"), "does not exist"),
        (("--evaluations", ""), "at least one"),
        (("--evaluations", "{root}/second", "--comparison", "{root}/comparison"), "name the same"),
        (("--evaluations", "{root}/first", "--runs", "{root}/store"), "is {root}/store a directory that `train` wrote"),
        (("--evaluations", "{root}/first", "--out", "{root}/store"), "is not a report"),
    ],
)
def test_what_makes_no_sense_is_refused(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    given = [argument.replace("{root}", str(city)) for argument in arguments]
    out = () if "--out" in given else ("--out", tmp_path / "r")
    assert call("report", "--data", city / "store", *out, *given) == 2
    assert message.replace("{root}", str(city)) in capsys.readouterr().err
    assert (city / "store" / "store.json").exists()


def test_trips_that_have_changed_since_are_refused(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(city / "store")
    write_generated(tmp_path / "trips", store, PAIRS)
    arguments = ("--data", store.path, "--trips", tmp_path / "trips", "--out", tmp_path / "e", "bootstrap.draws=100")
    assert call("evaluate", *arguments) == 0
    pl.read_parquet(tmp_path / "trips" / "trips.parquet").head(5).write_parquet(tmp_path / "trips" / "trips.parquet")
    given = ("--data", store.path, "--evaluations", tmp_path / "e", "--out", tmp_path / "r")
    assert call("report", *given) == 2
    assert "evaluate it again" in capsys.readouterr().err
    changed(tmp_path / "e" / "metrics.json", store="another")
    assert call("report", *given) == 2
    assert "another store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--report", "{root}/store", "--out", "{tmp}/b.zip"), "is no report"),
        (("--report", "{root}/report", "--out", "{tmp}/b.tar"), "must end in .zip"),
        (("--report", "{root}/report", "--weights", "{tmp}/no", "--out", "{tmp}/b.zip"), "no file"),
        (("--report", "{root}/report", "--runs", "{tmp}", "--out", "{tmp}/b.zip"), "no directory that `train` wrote"),
        (
            ("--report", "{root}/report", "--weights", "{root}/first/metrics.json,{root}/first/metrics.json",
             "--out", "{tmp}/b.zip"),
            "named twice",
        ),
    ],
)  # fmt: skip
def test_bundles_that_cannot_be_are_refused(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert call("bundle", *(a.replace("{root}", str(city)).replace("{tmp}", str(tmp_path)) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def study_document() -> dict[str, Any]:
    """What `tune` has written of a small study."""
    trial = {"number": 0, "name": f"trial_000 {EVIL}", "state": "complete", "fills_its_slot": True, "values": [0.8]}
    trial |= {"params": {"distill.weight": 1.0}, "epochs": 2, "seconds": 3.0, "teacher_seconds": 0.5}
    phase = {"phase": 1, "slots": 1, "filled": 1, "lost": 0, "states": {"complete": 1}, "trials": [trial]}
    settings = {"objective": "accuracy", "seeds": [0], "space": {"distill.weight": {}}}
    found = {"best_trial": "trial_000", "best_params": {"distill.weight": 1.0}, "pareto_front": None}
    return {
        "format": "tune-study/1",
        "study": "s",
        "settings": settings,
        "generations": None,
        "phases": [phase],
    } | found


def test_a_study_is_a_section_of_the_report(city: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "slice.png").write_bytes(b"PNG")
    (folder / "study_summary.json").write_text(json.dumps(study_document()))
    assert report(city, tmp_path / "report", "--study", folder) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert '<a href="#study">Study</a>' in page and "The final runs are not done" in page
    assert f"base64,{base64.b64encode(b'PNG').decode()}" in page
    assert EVIL not in page
    assert "study" not in re.findall(r'href="#(\w+)"', (city / "report" / "report.html").read_text())


@pytest.mark.parametrize("missing", ["phases", "settings"])
def test_a_damaged_study_is_refused(
    missing: str, city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = study_document()
    del document[missing]
    (tmp_path / "study_summary.json").write_text(json.dumps(document))
    assert report(city, tmp_path / "report", "--study", tmp_path) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_study_is_called_one_once_and_its_minus_is_no_hyphen() -> None:
    assert [studies.titled(name) for name in ("study", "window", "my-study")] == ["Study", "Study window", "My-study"]
    minus, text = "\N{MINUS SIGN}", studies._text("-0.5 to -.1, trial-7, 1e-05, <b>")
    assert text == f"{minus}0.5 to {minus}.1, trial-7, 1e-05, &lt;b&gt;"
