"""A metric that is declared in one place is measured, compared and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.report_city import call, city

from student_trainer.evaluate import next_road, trip_metrics
from student_trainer.evaluate.trip_metrics import METRICS, PairMetric

__all__ = ["city"]

DETOUR = PairMetric(
    "detour_roads", "detour_roads", "local", "Roads too many", "roads", "lower", "roads beyond those of the real trip",
    lambda pairs: (pairs.generated.lengths - pairs.real.lengths).astype(np.float64),
    of_arrived=True, of_cells=True, is_card=True, beside_trips="Too many", order="longest detour first",
)  # fmt: skip


def test_one_declaration_is_enough(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trip_metrics, "METRICS", (*METRICS, DETOUR))
    for name in ("first", "second"):
        given = ("--data", city / "store", "--trips", city / f"trips-{name}", "--out", tmp_path / name)
        assert call("evaluate", *given, f"name={name}", "bootstrap.draws=100") == 0
        found = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
        column = pl.read_parquet(tmp_path / name / "pairs.parquet", glob=False)["detour_roads"].to_numpy()
        assert found["detour_roads"]["value"] == pytest.approx(column.mean())
        assert {"detour_roads_arrived", "detour_roads_od_cells_upstream"} <= found.keys()
    both = f"{tmp_path / 'first'},{tmp_path / 'second'}"
    assert call("compare", "--evaluations", both, "--out", tmp_path / "c", "bootstrap.draws=100") == 0
    assert "detour_roads" in json.loads((tmp_path / "c" / "comparison.json").read_text())["metrics"]
    shown = ("--evaluations", both, "--comparison", tmp_path / "c", "--out", tmp_path / "r")
    assert call("report", "--data", city / "store", *shown) == 0
    text = (tmp_path / "r" / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    page = json.loads(data)
    assert "detour_roads" in page["metrics"] and "detour_roads" in page["cards"]
    on_map = {"column": "detour_roads", "unit": "roads", "heading": "Too many", "order": "longest detour first"}
    assert on_map in page["map"]["metrics"]
    assert all("detour_roads" in pair["models"]["second"]["metrics"] for pair in page["map"]["pairs"])


def test_what_is_older_than_a_metric_is_made_again(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trip_metrics, "METRICS", (*METRICS, DETOUR))
    old = f"{city / 'first'},{city / 'second'}"
    assert call("compare", "--evaluations", old, "--out", tmp_path / "c") == 2
    said = "lacks the columns detour_roads; evaluate again (`student-trainer evaluate`)"
    assert f"{city / 'first' / 'pairs.parquet'} {said}" in capsys.readouterr().err
    for name in ("first", "second"):
        given = ("--data", city / "store", "--trips", city / f"trips-{name}", "--out", tmp_path / name)
        assert call("evaluate", *given, f"name={name}", "bootstrap.draws=100") == 0
    both = ("--evaluations", f"{tmp_path / 'first'},{tmp_path / 'second'}")
    for comparison, message in (
        (city / "comparison", "comparison lacks detour_roads, "),
        (city / "comparison" / "comparison.json", "comparison.json is a file; give the directory that "),
    ):
        shown = (*both, "--comparison", comparison, "--out", tmp_path / "r")
        assert call("report", "--data", city / "store", *shown) == 2
        assert message in capsys.readouterr().err


def test_declarations_do_not_collide() -> None:
    """Names are keys of one document, columns those of one table."""
    names = [*(metric.name for metric in trip_metrics.METRICS), *(metric.name for metric in next_road.METRICS)]
    assert len(set(names)) == len(names)
    for columns in ([m.column for m in trip_metrics.METRICS], [m.column for m in next_road.METRICS]):
        assert len(set(columns)) == len(columns)
