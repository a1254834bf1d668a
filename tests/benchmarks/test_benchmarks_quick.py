"""The benchmarks run, what they compare agrees, and the results have their shape. No time is judged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def benchmarks(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every section's record, after a quick run of all of them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    done = benchmarks("--quick", "--work", folder / "work", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    tables = [path.read_text() for path in sorted((folder / "out").glob("*.md"))]
    assert len(tables) == 2
    assert all(table in done.stdout for table in tables)
    return {path.stem: json.loads(path.read_text()) for path in (folder / "out").glob("*.json")}


@pytest.mark.parametrize("section", ["teacher", "overlap"])
def test_a_record_says_what_was_measured_where_and_when(results: dict[str, dict[str, Any]], section: str) -> None:
    record = results[section]
    assert {"section", "title", "date", "machine", "settings", "figures", "notes"} == record.keys()
    assert {"cpu", "cores", "torch", "load"} <= record["machine"].keys()
    assert record["section"] == section
    assert record["settings"]["store"]


def test_all_ways_to_ask_the_teacher_agree(results: dict[str, dict[str, Any]]) -> None:
    (figures,) = results["teacher"]["figures"].values()
    agreement = figures["agreement"]
    assert agreement["engine_and_server_same_bits"]
    assert 0 <= agreement["largest_difference_to_naive"] < 4e-3  # the rounding of float16 answers
    assert 0 < figures["cache"]["hit_rate"] < 1
    assert figures["wire_bytes_per_position"]["response"] > 2 * figures["wire_bytes_per_position"]["candidates"]


def test_every_way_has_its_speed_and_ratios(results: dict[str, dict[str, Any]]) -> None:
    (figures,) = results["teacher"]["figures"].values()
    assert len(figures["ways"]) == 6
    for name, way in figures["ways"].items():
        assert way["positions"] > 0
        assert way["positions_per_second"]["median"] > 0
        assert all(ratio["min"] > 0 for ratio in way["ratio_to"].values())
        assert way["server_cpu_seconds_per_1000"] == 0 or name.startswith("server")
    assert figures["ways"]["trip_at_once"]["ratio_to"]["trip_at_once"]["median"] == 1


def test_no_pace_of_the_teacher_changes_what_is_learned(results: dict[str, dict[str, Any]]) -> None:
    losses = list(results["overlap"]["figures"]["loss"].values())
    assert len(losses) == 4
    for loss in losses:
        assert loss == pytest.approx(losses[0], rel=1e-6)


def test_arms_are_compared_with_vanilla_and_with_an_instant_teacher(results: dict[str, dict[str, Any]]) -> None:
    figures = results["overlap"]["figures"]
    assert figures["arms"].keys() == {f"{kind} {factor}" for kind in ("synchronous", "overlapped") for factor in (0, 1)}
    for arm in figures["arms"].values():
        assert arm["ratio_to_vanilla"]["min"] > 0
        assert arm["within_5_percent_of_vanilla"] == (arm["ratio_to_vanilla"]["median"] <= 1.05)
    assert figures["arms"]["overlapped 0"]["ratio_to_distilled_at_0"]["median"] == 1
    for parts in figures["parts_ms"].values():
        assert math.isclose(sum(parts.values()), 2 * parts["step"], rel_tol=1e-6)


def test_a_mistaken_section_is_named() -> None:
    done = benchmarks("overlop")
    assert done.returncode == 2
    assert "no section overlop; sections are teacher, overlap" in done.stderr


def test_a_store_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = benchmarks("teacher", "--quick", "--store", tmp_path, "--work", tmp_path, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"benchmarks: {tmp_path} is not a store")
    assert done.stderr.count("\n") == 1
