"""Durations that are placeholders: found by `prepare`, and no metric of them is evaluated, compared or shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.generated_trips import write_generated
from support.report_city import call

from shared.store import Store
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.run import run as make_city
from student_trainer.evaluate import metrics
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare

PAIRS = 30
OF_TIME = ("duration", "time_error")


def with_a_second_a_step(path: Path) -> None:
    """Gives every trip of a split a second from each road to the next, as some published data have."""
    with open(path, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    place = header.index("time_list")
    for row in rows:
        times = row[place].split(",")
        start = times[0][:17]
        row[place] = ",".join(f"{start}{second:02}Z" for second in range(len(times)))
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def test_no_metric_of_placeholders_reaches_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"train": 40, "val": 40, "test": 30}
    make_city(DemoCityConfig.model_validate({"out": tmp_path / "raw", "columns": 9, "rows": 9, "trips": counts}))
    with_a_second_a_step(tmp_path / "raw" / "val.csv")
    settings = {"raw": tmp_path / "raw", "out": tmp_path / "store", "zones": {"count": 4}}
    manifest = prepare(PrepareConfig.model_validate(settings)).manifest
    assert [facts["placeholders"] for facts in manifest["splits"].values()] == [[], ["durations"], []]
    (finding,) = manifest["findings"]
    assert finding.startswith("val.csv: 100.0 % of ") and "take 1 s: a placeholder rather than a duration" in finding

    store = Store(tmp_path / "store")
    for name, spoiled in (("one", 0.1), ("two", 0.6)):
        write_generated(tmp_path / f"trips-{name}", store, PAIRS, spoiled=spoiled)
        found = ("--data", store.path, "--trips", tmp_path / f"trips-{name}", "--out", tmp_path / name)
        assert call("evaluate", *found, f"name={name}", "bootstrap.draws=100") == 0
    assert "Metrics of time are left out: the durations of val are placeholders" in capsys.readouterr().err
    both = f"{tmp_path / 'one'},{tmp_path / 'two'}"
    assert call("compare", "--evaluations", both, "--out", tmp_path / "c", "bootstrap.draws=100") == 0
    told = capsys.readouterr().err
    assert "Metrics of time are left out" in told and "Trip duration" not in told
    shown = ("--comparison", tmp_path / "c", "--out", tmp_path / "report")
    assert call("report", "--data", store.path, "--evaluations", both, *shown) == 0

    documents: list[dict[str, Any]] = [
        json.loads((tmp_path / place).read_text()) for place in ("one/metrics.json", "c/comparison.json")
    ]
    for document in documents:
        assert not [name for name in document["metrics"] if any(word in name for word in OF_TIME)]
        assert {"hausdorff_km", "trip_distance_error_km", "jsd_distance_bits"} <= document["metrics"].keys()
        assert document["left_out"].startswith("Metrics of time are left out")
    assert documents[0]["histograms"].keys() == {"distance", "radius", "radius_rms"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert documents[0]["left_out"].replace("<", "\\u003c") in page
    assert "DATA.left_out" in page


def test_which_metrics_are_of_durations() -> None:
    """Every metric in seconds, and those that are shares or divergences of seconds."""
    for name in (
        "trip_duration_error_s", "trip_duration_error_s_arrived", "trip_duration_error_s_median",
        "trip_duration_error_relative", "next_road_time_error_s", "next_road_time_error_relative_upstream",
        "jsd_trip_duration_bits", "jsd_segment_duration_nats_upstream", "trip_duration", "segment_duration",
    ):  # fmt: skip
        assert metrics.is_of_durations(name), name
    for name in ("trip_distance_error_km", "jsd_distance_bits", "next_road_accuracy", "dtw_km", "radius"):
        assert not metrics.is_of_durations(name), name
