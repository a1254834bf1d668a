"""The benchmarks run, what they compare agrees, and the results have their shape. No time is judged."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cities, daemon, generation, hidden, host, server
from benchmarks.__main__ import main
from benchmarks.common import Options
from student_trainer.demo_city import run as demo_city
from student_trainer.demo_city.config import DemoCityConfig

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command has ended with, and what it has printed."""

    returncode: int
    stdout: str
    stderr: str


def benchmarks(*arguments: object) -> Done:
    """`python -m benchmarks` in this process, which has imported what each of seventeen would import anew."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # of the command line's parser
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


class Results(dict[str, dict[str, Any]]):
    """Records of quick runs by section, each made when it is first asked for, over one city."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, section: str) -> dict[str, Any]:
        work, out = self.folder / "work", self.folder / "out"
        done = benchmarks(section, "--quick", "--work", work, "--out", out)
        assert done.returncode == 0, done.stderr
        assert (out / f"{section}.md").read_text() in done.stdout
        self[section] = json.loads((out / f"{section}.json").read_text())
        return self[section]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.parametrize(
    "section",
    [
        "teacher",
        "server",
        "host",
        "prefixes",
        "overlap",
        "peers",
        "fairness",
        "memory",
        "prepare",
        "footprint",
        "collate",
        "step",
        "hidden",
        "scaling",
        "evaluation",
        "generation",
        "latency",
    ],
)
def test_a_record_says_what_was_measured_where_and_when(results: Results, section: str) -> None:
    record = results[section]
    assert {"section", "title", "date", "machine", "settings", "figures", "notes"} == record.keys()
    assert {"cpu", "cores", "torch", "load"} <= record["machine"].keys()
    assert record["section"] == section
    assert record["settings"]["store"]
    assert record["settings"]["data"].startswith("tiny_city")
    assert "(synthetic, for a quick look, 257 roads, " in record["settings"]["data"]
    assert f"Data: {record['settings']['data']}" in (results.folder / "out" / f"{section}.md").read_text()


def test_both_passes_have_their_speed_and_ratios(results: Results) -> None:
    """That the ways agree, and that the second pass repeats the first bit for bit, the section checks itself."""
    for name, found in results["teacher"]["figures"].items():
        assert all(ratio > 0 for ways in found["ratio"].values() for ratio in ways.values())
        assert sum(found["outcomes"].values()) == found["positions"]
        assert 0 < found["outcomes"]["miss"] < found["positions"]
        assert found["computed"]["states"] <= found["computed"]["tokens"] <= found["computed"]["padded"]
        assert set(found["second_pass_stage_seconds_per_position"]) == {"check", "look up"}, name


def test_each_part_of_the_processors_work_is_measured(results: Results) -> None:
    for found in results["host"]["figures"].values():
        assert found.keys() == {"this"}
        for kind, figures in found["this"].items():
            is_known = kind == "known"
            assert figures["count"] > 0
            assert figures["all"]["median"] > 0
            assert (figures["parts"]["assemble"] == 0) == is_known
            assert figures["parts"]["look up"] > 0


def test_the_daemon_is_compared_with_the_engine(results: Results) -> None:
    assert len(results["server"]["figures"]) == 4
    for found in results["server"]["figures"].values():
        assert found["ratio"]["min"] > 0
        assert len(found["blocks"]) == 3


def test_no_pace_of_the_teacher_changes_what_is_learned(results: Results) -> None:
    losses = list(results["overlap"]["figures"]["loss"].values())
    assert len(losses) == 4
    for loss in losses:
        assert loss == pytest.approx(losses[0], rel=1e-6)


def test_arms_are_compared_with_vanilla_and_with_an_instant_teacher(results: Results) -> None:
    figures = results["overlap"]["figures"]
    assert figures["arms"].keys() == {f"{kind} {factor}" for kind in ("synchronous", "overlapped") for factor in (0, 1)}
    for arm in figures["arms"].values():
        assert arm["ratio_to_vanilla"]["min"] > 0
        assert arm["within_5_percent_of_vanilla"] == (arm["ratio_to_vanilla"]["median"] <= 1.05)
    assert figures["arms"]["overlapped 0"]["ratio_to_distilled_at_0"]["median"] == 1
    for parts in figures["parts_ms"].values():
        assert math.isclose(sum(parts.values()), 2 * parts["step"], rel_tol=1e-6)


def test_every_server_answers_every_combination(results: Results) -> None:
    figures = results["peers"]["figures"]
    assert {"grpc.aio by hand", "ours, cache off", "ours, cache off, unary", "ours, cache on"} == figures.keys()
    for combinations in figures.values():
        assert combinations.keys() == {"1 x 2", "8 x 2"}
        for found in combinations.values():
            assert 0 < found["p50_ms"] <= found["p99_ms"]
            assert found["requests_per_second"]["median"] > 0
            assert found["server_cpu_ms"] >= 0


def test_a_light_client_is_measured_alone_and_beside(results: Results) -> None:
    for found in results["fairness"]["figures"].values():
        assert found["alone"]["requests"] > 0
        assert found["beside"]["requests"] > 0
        assert found["ratio_p99"]["min"] > 0


@pytest.mark.parametrize("way", [["--transport", "unary"], ["--mode", "sequence", "--in-flight", "2", "--shared"]])
def test_a_load_is_played_by_hand(results: Results, way: list[str]) -> None:
    assert results["fairness"]
    work = results.folder / "work"
    with daemon.serve(work / "teacher.safetensors", "engine.threads=1") as server:
        options = ["--address", server.address, "--metrics", server.metrics, "--pid", server.process.pid, "--json"]
        options += ["--store", work / "tiny_city", "--clients", 3, "--processes", 2, "--positions", 16]
        options += ["--seconds", 0.5, "--pool", 5, *way]
        command = [sys.executable, "-m", "benchmarks.load", *map(str, options)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == {"OK": found["requests"]}
    assert found["positions"] >= 16 * found["requests"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert found["batch_positions"] > 0


def test_a_load_without_a_teacher_is_one_line(results: Results) -> None:
    assert results["fairness"]
    command = [sys.executable, "-m", "benchmarks.load", "--address", "127.0.0.1:1", "--positions", "8"]
    command += ["--pool", "2", "--store", str(results.folder / "work" / "tiny_city"), "--metrics", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks.load: ")
    assert done.stderr.count("\n") == 1


def test_memory_is_sampled_under_load(results: Results) -> None:
    figures = results["memory"]["figures"]
    assert figures["positions"] > 0
    assert len(figures["samples"]) > 3
    assert figures["most_mib"] >= figures["start_mib"] > 0


def test_batches_are_built_faster_than_one_would_and_padded_as_counted(results: Results) -> None:
    """That all ways build the same batch, the section checks itself."""
    figures = results["collate"]["figures"]
    assert all(ratio["min"] > 0 for ratio in figures["build"]["ratio"].values())
    (padding,) = figures["padding"].values()
    assert padding.keys() == {"only shuffled", "4, equal trips", "4, equal positions"}
    assert len({found["batches"] for found in padding.values()}) == 1
    shares = [padding[order]["padded_share"] for order in ("only shuffled", "4, equal positions")]
    assert shares[1] < shares[0] < 1
    assert padding["4, equal positions"]["weight_deviation"] < padding["4, equal trips"]["weight_deviation"]


def test_a_step_is_compared_with_the_straightforward_one(results: Results) -> None:
    """That both learn the same, the section checks itself."""
    figures = results["step"]["figures"]
    for way in ("ours", "straightforward"):
        found = figures[way]
        parts = [part["median"] for part in found["parts_ms"].values()]
        assert min(parts) > 0
        assert found["grown_mib"]["median"] > 0
        assert len(figures["losses"][way][0]) == 4
    assert figures["ratio"]["time"]["min"] > 0


def test_preparing_is_compared_with_files_made_trip_by_trip(results: Results) -> None:
    """That both give the same features the section checks itself."""
    figures = results["prepare"]["figures"]
    assert len(figures["some_trips"]["seconds"]) == 4
    assert len(figures["some_trips"]["ratio"]) == 4
    assert all(ratio["min"] > 0 for ratio in figures["some_trips"]["ratio"].values())
    whole = figures["whole_city"]
    assert {"roads", "train", "zones"} < whole["parts"].keys()
    assert sum(part["median"] for part in whole["parts"].values()) <= whole["seconds"]["median"]
    assert whole["under_90_s"] == (whole["seconds"]["max"] < 90)


def test_the_footprint_of_two_cities_is_measured(results: Results) -> None:
    few, many = results["footprint"]["figures"].values()
    assert (few["trips"], many["trips"]) == (449, 1000)
    assert few["store_mib"] < many["store_mib"]
    for found in (few, many):
        assert found["prepare"]["peak_mib"] > 10
        assert found["use"].keys() == {"mmap", "ram"}
        for use in found["use"].values():
            assert 0 < use["open_s"] < use["train_seconds"]
            assert use["train_peak_mib"] > use["open_peak_mib"] > 10


def test_epochs_with_a_teacher_are_compared_with_epochs_without(results: Results) -> None:
    figures = results["hidden"]["figures"]
    assert figures.keys() == {"epoch 1", "epoch 2"}
    for found in figures.values():
        assert found["ratio"]["median"] > 0
        assert 0 <= found["teacher_wait_share"]["median"] < 1


def test_two_ranks_are_compared_with_one(results: Results) -> None:
    """That all learn the same, the section checks itself."""
    figures = results["scaling"]["figures"]
    assert figures.keys() == {"1 x 1", "1 x 2", "2 x 1"}
    assert figures["1 x 1"]["speed_ratio"]["median"] == 1
    for name, found in figures.items():
        assert found["speed_ratio"]["min"] > 0
        assert (0 < found["ranks_ms"]["median"] < found["step_ms"]["median"]) == (name == "2 x 1")


def test_searches_find_the_same_trips(results: Results) -> None:
    """That they do, the section checks itself."""
    figures = results["generation"]["figures"]
    assert figures["ratio"].keys() == {"ours, alone", "by prefix", "by depth"}
    for way in ("ours", *figures["ratio"]):
        assert figures[way]["trips_per_s"]["median"] > 0 and figures[way]["arrived"] > 0.5
        assert figures[way]["grown_mib"]["median"] >= 0
    assert figures["same_roads"]["min"] >= 0.98


def test_a_mistaken_section_is_named() -> None:
    done = benchmarks("overlop")
    assert done.returncode == 2
    assert "no section overlop; sections are teacher, server, " in done.stderr


def test_a_store_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = benchmarks("teacher", "--quick", "--store", tmp_path, "--work", tmp_path, "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"benchmarks: {tmp_path} is not a store")
    assert done.stderr.count("\n") == 1


def test_a_clone_alone_has_a_city_that_is_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sections ask for at full size; that they run on it is for `make bench` itself."""
    monkeypatch.setattr(cities, "DATA", tmp_path / "none")
    asked: list[DemoCityConfig] = []
    monkeypatch.setattr(demo_city, "run", asked.append)
    raw, is_demo = cities.raw_city(Options(quick=False, store=None, work=tmp_path), "sf_taxi")
    assert is_demo and raw.parent == tmp_path / "raw"
    (city,) = asked
    fewest = 15  # positions of a trip, on average: `demo-city` reports 26 and more
    size = server.Size()
    needed = max(case.positions * case.requests for case in size.cases) * (size.blocks + 1)
    assert city.trips.train * fewest >= needed
    assert city.trips.train >= max(host.Size.trips, generation.Size.train_trips, hidden.Size.trips)
    assert city.trips.test >= generation.Size.pairs


def test_a_store_with_too_few_trips_is_one_line(results: Results, tmp_path: Path) -> None:
    assert results["server"]
    store = results.folder / "work" / "tiny_city"
    done = benchmarks("server", "--store", store, "--work", tmp_path, "--out", tmp_path)
    assert done.returncode == 2
    assert f"{store} has training trips for" in done.stderr and "fresh ones are asked" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluation_is_compared_with_plain_loops(results: Results) -> None:
    """That both measure the same, the section checks itself."""
    figures = results["evaluation"]["figures"]
    assert figures["ratio"]["min"] > 0
    assert figures["pairs_per_s"].keys() == {"ours", "plain loops"}


def test_one_question_is_measured_in_four_ways(results: Results) -> None:
    """That they agree, the section checks itself."""
    figures = results["latency"]["figures"]
    kinds = {"next_road", "exported", "whole trip", "anew"}
    assert all(figures[batch].keys() == kinds for batch in ("1", "4"))
    clocks = [taken["clock"] for batch in ("1", "4") for taken in figures[batch].values()]
    assert all(0 < clock["min"] <= clock["p50"] for clock in clocks)
