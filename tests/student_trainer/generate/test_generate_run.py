"""`student-trainer generate`: what it writes, what it goes on from, and what it refuses."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import reference_path
from support.random_city import random_network, write_random_store
from support.setting_reads import reads_all_of, recorded_reads, settings_of
from support.students import random_model

from shared.cli import main
from shared.errors import ConfigError, FileFormatError
from shared.store import Store
from student_trainer.__main__ import JOBS
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import records, workers
from student_trainer.generate import run as generate
from student_trainer.generate.config import GenerateConfig
from student_trainer.generate.found import STATUSES, Found
from student_trainer.model import device as devices
from student_trainer.model import upstream
from student_trainer.prepare import run as prepare
from student_trainer.prepare.config import PrepareConfig


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store and upstream weights for it."""
    folder = tmp_path_factory.mktemp("generate")
    store = write_random_store(folder / "store", trips=120)
    torch.save(upstream.export(random_model(RoadNetwork.load(store))), folder / "hoser.pth")
    return store, folder / "hoser.pth"


def settings(city: tuple[Store, Path], out: Path, **changed: Any) -> GenerateConfig:
    store, weights = city
    search = {"max_steps": 40} | changed.pop("search", {})
    values = {"data": store.path, "weights": str(weights), "out": out, "pairs": 30, "threads": 2, "search": search}
    return GenerateConfig.model_validate(values | changed)


@pytest.mark.parametrize("method", ["greedy", "beam", "best_first", "shortest_path"])
def test_every_pair_has_a_trip_on_roads_that_meet(city: tuple[Store, Path], tmp_path: Path, method: str) -> None:
    store, _ = city
    summary = generate.generate(settings(city, tmp_path / "out", method=method, split="train", pairs=0))
    network, trips = RoadNetwork.load(store), store.trips("train")
    table = pl.read_parquet(tmp_path / "out" / "trips.parquet")
    assert dict(table.schema) == records.SCHEMA
    assert table["pair"].to_list() == table["source_trip"].to_list() == list(range(120))
    assert summary["pairs"] == 120 and summary["statuses"].keys() == set(STATUSES)
    assert sum(summary["statuses"].values()) == 120 and summary["statuses"]["arrived"] > 30
    same = 0
    for row in table.iter_rows(named=True):
        real = slice(trips.offsets[row["pair"]], trips.offsets[row["pair"] + 1])
        assert row["source_row"] == trips.source_rows[row["pair"]]
        assert row["roads"][0] == row["origin"] == trips.roads[real][0]
        assert row["destination"] == trips.roads[real][-1]
        assert row["times"][0] == row["departure"] == trips.times[real][0]
        assert len(row["roads"]) == len(row["times"]) == row["steps"] + 1
        assert (np.diff(row["times"]) >= 0).all()
        assert (row["roads"][-1] == row["destination"]) == (row["status"] == "arrived")
        for a, b in itertools.pairwise(row["roads"]):
            assert b in network.successors[network.successor_offsets[a] : network.successor_offsets[a + 1]]
        assert (row["log_prob"] is None) == (method == "shortest_path")
        if row["origin"] == row["destination"]:
            same += 1
            assert row["status"] == "arrived" and row["steps"] == row["expanded"] == 0
    assert same  # random walks come home now and then


def test_upstream_reads_the_csv(city: tuple[Store, Path], tmp_path: Path) -> None:
    generate.generate(settings(city, tmp_path / "out"))
    rows = pl.read_csv(tmp_path / "out" / "trips.csv").rows(named=True)
    table = pl.read_parquet(tmp_path / "out" / "trips.parquet").rows(named=True)
    assert len(rows) == len(table) == 30
    for row, trip in zip(rows, table, strict=True):
        assert list(row) == [
            "origin_road_id", "destination_road_id", "source_index", "source_origin_time", "gene_trace_road_id",
            "gene_trace_datetime",
        ]  # fmt: skip
        assert (row["origin_road_id"], row["destination_road_id"]) == (trip["origin"], trip["destination"])
        assert row["source_index"] == trip["source_row"]
        assert json.loads(row["gene_trace_road_id"]) == trip["roads"]
        times = np.array(json.loads(row["gene_trace_datetime"]))
        assert row["source_origin_time"] == times[0]
        parsed = np.array([time.removesuffix("Z") for time in times], "datetime64[s]").astype(np.int64)
        assert parsed.tolist() == trip["times"]


def test_pairs_do_not_depend_on_the_method_or_the_weights(city: tuple[Store, Path], tmp_path: Path) -> None:
    columns = ["pair", "source_trip", "source_row", "origin", "destination", "departure"]
    tables = []
    for number, changed in enumerate(({}, {"method": "shortest_path"}, {"method": "shortest_path", "weights": "none"})):
        generate.generate(settings(city, tmp_path / str(number), **changed))
        tables.append(pl.read_parquet(tmp_path / str(number) / "trips.parquet").select(columns))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def test_times_without_weights_are_those_of_the_road_classes(city: tuple[Store, Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as there:
        there.chdir(tmp_path)
        Path("none").mkdir()  # a directory of that name is not meant
        first = generate.generate(settings(city, tmp_path / "a", method="shortest_path", weights="none"))
    generate.generate(settings(city, tmp_path / "b", method="shortest_path"))
    a, b = (pl.read_parquet(tmp_path / name / "trips.parquet") for name in "ab")
    assert a["roads"].equals(b["roads"]) and not a["times"].equals(b["times"])
    assert first["weights"] is None and first["search"]["forward_rows"] == 0


def test_a_stopped_run_goes_on_to_the_same_trips(
    city: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    generate.generate(settings(city, whole))
    searched: list[int] = []

    def stopped(after: int, runs: Iterable[workers.Run], todo: Iterable[int]) -> Iterator[Found]:
        for number, found in enumerate(search(runs, todo)):
            if number == after:
                raise KeyboardInterrupt
            searched.append(found.pair)
            yield found

    search = workers.search
    for _ in range(2):
        monkeypatch.setattr(workers, "search", lambda runs, todo: stopped(9, runs, todo))
        with pytest.raises(KeyboardInterrupt):
            generate.generate(settings(city, out, block_trips=4))
    assert not (out / "trips.parquet").exists()
    with pytest.raises(ConfigError, match="other settings"):
        generate.generate(settings(city, out, seed=1))
    lost = max((out / "parts").glob("[0-9]*.json"), key=lambda path: int(path.stem))  # killed before it was complete
    count = len(pl.read_parquet(lost.with_suffix(".parquet")))
    lost.unlink()
    monkeypatch.setattr(workers, "search", lambda runs, todo: stopped(10_000, runs, todo))
    summary = generate.generate(settings(city, out, block_trips=7, threads=1, batch_trips=3))
    assert len(searched) - count <= 30 and len(set(searched)) >= 28  # the rest are trips that need no search
    assert pl.read_parquet(out / "trips.parquet").equals(pl.read_parquet(whole / "trips.parquet"))
    assert (out / "trips.csv").read_bytes() == (whole / "trips.csv").read_bytes()
    assert summary["search"]["forward_rows"] > 0 and not (out / "parts").exists()


def test_what_is_done_is_not_done_again_and_not_replaced_unasked(city: tuple[Store, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = generate.generate(settings(city, out))
    again = generate.generate(settings(city, out, name="other name", threads=1))
    assert again == first | {"name": "other name"}
    assert json.loads((out / "summary.json").read_text()) == again
    with pytest.raises(ConfigError, match="replace=true"):
        generate.generate(settings(city, out, seed=1))
    other = generate.generate(settings(city, out, seed=1, replace=True))
    assert other["fingerprint"] != first["fingerprint"]


def test_trips_that_have_changed_are_not_taken_for_done(city: tuple[Store, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = generate.generate(settings(city, out))
    for name in ("trips.parquet", "trips.csv"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(FileFormatError, match=rf"{name} is not as `generate` wrote it .*replace=true"):
            generate.generate(settings(city, out))
        again = generate.generate(settings(city, out, replace=True))
        assert again["files"] == first["files"] and (out / name).read_bytes() == whole


@pytest.mark.parametrize("damage", ["cut", "one bit", "other columns"])
def test_a_damaged_part_is_refused_with_one_line(city: tuple[Store, Path], tmp_path: Path, damage: str) -> None:
    """One bit makes a count negative, at which polars 2.1 ends the process that reads."""
    generate.generate(settings(city, tmp_path / "out"))
    trips = pl.read_parquet(tmp_path / "out" / "trips.parquet")
    parts = records.Parts(tmp_path)
    parts.start("a")
    for _ in range(2):
        parts.write(trips, {})
    path = parts.folder / "1.parquet"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "one bit":
        place = data.index(bytes([44, 21, 2 * len(trips), 21])) + 2  # Thrift: a structure, its first number, zigzag
        path.write_bytes(data[:place] + bytes([2 * len(trips) + 1]) + data[place + 1 :])
    else:
        trips.with_columns(pl.lit("x").alias("pair")).write_parquet(path)
    with pytest.raises(FileFormatError, match=r"1\.json or its trips are damaged .*; remove") as raised:
        parts.read()
    assert "\n" not in str(raised.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="left alone"):
        generate.generate(settings(city, tmp_path / "mine", replace=True))


def other_city(folder: Path) -> Path:
    network, _ = random_network(20)
    torch.save(upstream.export(random_model(network)), folder / "other.pth")
    return folder / "other.pth"


def not_finite(folder: Path, city: tuple[Store, Path]) -> Path:
    weights = torch.load(city[1], weights_only=True)
    weights["navigator.v_proj.weight"][:] = torch.nan
    torch.save(weights, folder / "nan.pth")
    return folder / "nan.pth"


def test_it_prints_one_line_and_what_comes_next(
    city: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, weights = city
    for name, given, told in (
        ("trips-mine", ("--weights", str(weights)), f" --weights {weights}"),
        ("rule", ("method=shortest_path",), ""),
    ):
        argv = ["generate", "--data", str(store.path), "--out", str(tmp_path / name), "pairs=5", *given]
        assert main("student-trainer", "", JOBS, argv) == 0
        shown = capsys.readouterr()
        (line,) = shown.out.splitlines()
        assert json.loads(line) == json.loads((tmp_path / name / "summary.json").read_text())
        out = tmp_path / f"eval-{name.removeprefix('trips-')}"
        wanted = f"student-trainer evaluate --data {store.path} --trips {tmp_path / name}{told} --out {out}"
        assert shown.err.splitlines()[-1].endswith(f"next: {wanted}")


def test_bad_input_is_explained(city: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, weights = city
    empty = shutil.copytree(store.path, tmp_path / "empty")
    for name, length in (("roads", 0), ("times", 0), ("offsets", 1), ("source_rows", 0)):
        path = empty / "test" / f"{name}.npy"
        np.save(path, np.load(path)[:length])
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"nothing")
    base = {"--data": str(store.path), "--weights": str(weights), "--out": str(tmp_path / "out")}
    cases: list[tuple[dict[str, str], list[str], str]] = [
        ({"--weights": str(other_city(tmp_path))}, [], "20 roads, the store has 30"),
        ({"--weights": str(tmp_path / "absent.pt")}, [], "absent.pt"),
        ({"--weights": str(garbage)}, [], "garbage.pth"),
        ({"--weights": str(not_finite(tmp_path, city))}, [], "not finite"),
        ({"--weights": "none"}, [], "needs weights"),
        ({"--data": str(tmp_path)}, [], "not a store"),
        ({"--data": str(empty)}, ["pairs=0"], "the test split has no trips"),
        ({"--out": str(garbage)}, [], "not a directory"),
        ({}, ["search.width=0"], "search.width"),
        ({}, ["method=dijkstra"], "method"),
    ]
    for flags, overrides, message in cases:
        argv = ["generate", *(text for flag in (base | flags).items() for text in flag), "pairs=5", *overrides]
        assert main("student-trainer", "", JOBS, argv) == 2, message
        shown = capsys.readouterr()
        assert message in shown.err and "Traceback" not in shown.err, shown.err
        assert not shown.out


@reads_all_of("generate")
def test_every_setting_is_read(city: tuple[Store, Path], tmp_path: Path) -> None:
    with recorded_reads() as reads:
        generate.run(settings(city, tmp_path / "beam"))
        generate.run(settings(city, tmp_path / "beam", method="best_first", replace=True))
    assert settings_of(GenerateConfig) <= reads


@pytest.mark.parametrize("kind", ["freqs", "timeemb"])
def test_upstream_weights_generate(tmp_path: Path, kind: str) -> None:
    raw, weights = (reference_path("hoser", name) for name in ("city", f"hoser_{kind}.pth"))
    prepare.run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    values = {"data": tmp_path / "store", "weights": str(weights), "out": tmp_path / "out", "pairs": 20}
    summary = generate.generate(GenerateConfig.model_validate(values | {"search": {"max_steps": 60}}))
    assert sum(summary["statuses"].values()) == 20
    assert summary["weights"]["file"] == str(weights) and len(summary["weights"]["sha256"]) == 64


def test_the_device_is_told_and_its_kind_decides(city: tuple[Store, Path], tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    summary = generate.generate(settings(city, tmp_path / "out", device="cpu"))
    assert summary["device"] == "cpu" and "searched on cpu" in caplog.text
    assert generate.generate(settings(city, tmp_path / "out", device="cpu", batch_trips=3)) == summary  # up to date
    store, weights = city[0], {"sha256": "0"}
    places = [(name, torch.device(where)) for name, where in (("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"))]
    prints = [generate._fingerprint(settings(city, tmp_path, device=name), store, weights, at) for name, at in places]
    assert prints[0] != prints[1] == prints[2]


def test_a_device_that_is_not_there_is_refused(
    city: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.Seen, "here", lambda: devices.Seen(1))
    with pytest.raises(ConfigError, match="device=cuda:3 is not here: torch sees one CUDA device"):
        generate.generate(settings(city, tmp_path / "out", device="cuda:3"))
    assert not (tmp_path / "out" / "parts").exists()
    monkeypatch.setattr(devices.Seen, "here", lambda: devices.Seen(0))
    assert generate.generate(settings(city, tmp_path / "out", device="auto"))["device"] == "cpu"
