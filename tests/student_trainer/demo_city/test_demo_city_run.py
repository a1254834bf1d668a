"""The demo city as files: what `prepare` finds in them, and when they may be replaced."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from shared import config as configuration
from shared.errors import ConfigError
from shared.store import SPLITS, SplitName, Store
from student_trainer import __main__ as command_line
from student_trainer.demo_city.config import DemoCityConfig, TripCounts
from student_trainer.demo_city.drivers import MAX_ROADS, MIN_ROADS
from student_trainer.demo_city.run import run
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import run as prepare

FEW = TripCounts(train=60, val=20, test=20)


@pytest.fixture(scope="module")
def default_city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The city that `demo-city` writes without any setting."""
    out = tmp_path_factory.mktemp("demo") / "city"
    run(DemoCityConfig(out=out))
    return out


@pytest.fixture(scope="module")
def default_store(default_city: Path) -> Store:
    out = default_city.parent / "store"
    prepare(PrepareConfig(raw=default_city, out=out, strict=True))
    return Store(out)


def test_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    cities = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(DemoCityConfig(out=tmp_path / name, seed=seed, trips=FEW))
        cities[name] = {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
    assert cities["a"] == cities["b"]
    assert all(cities["a"][name] != cities["c"][name] for name in cities["a"])


@pytest.mark.parametrize("split", SPLITS)
def test_trips_keep_the_rules_of_the_format(default_store: Store, split: SplitName) -> None:
    trips = default_store.trips(split)
    assert len(trips) == TripCounts().model_dump()[split]
    assert MIN_ROADS <= trips.lengths.min() <= trips.lengths.max() <= MAX_ROADS
    inside = np.ones(len(trips.times) - 1, bool)
    inside[trips.offsets[1:-1] - 1] = False
    assert (np.diff(trips.times)[inside] >= 1).all()


def test_nothing_is_dropped(default_store: Store) -> None:
    assert not any(count for reasons in default_store.manifest["dropped"].values() for count in reasons.values())
    assert default_store.manifest["statistics"]["max_out_degree"] == 4


def test_frequencies_alone_do_not_explain_the_trips(default_store: Store) -> None:
    floors = default_store.manifest["floors"]
    assert 0.6 < floors["second_order_markov"] < 0.82
    assert floors["nearest_to_destination"] < 0.82
    assert floors["single_successor"] < 0.1


def test_roads_meet_in_the_store_as_they_did_on_the_plan(default_store: Store) -> None:
    attributes = default_store.network("intersection_attr")
    successors = default_store.manifest["statistics"]["successor_pairs"]
    assert np.count_nonzero(attributes[:, 1]) == successors


def test_trips_spread_over_weeks_and_hours_with_rush_hours(default_store: Store) -> None:
    trips = default_store.trips("train")
    start = trips.times[trips.offsets[:-1]]
    day, hour = (start - start.min()) // 86_400, start % 86_400 // 3600
    assert len(np.unique(day)) >= 27
    weekday = (start // 86_400 + 3) % 7 < 5
    by_hour = np.bincount(hour[weekday], minlength=24)
    assert min(by_hour[8], by_hour[17]) > 2 * by_hour[12]


def test_picture_is_svg_with_every_street(default_city: Path, default_store: Store) -> None:
    root = ElementTree.fromstring((default_city / "city.svg").read_text())
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    one_way = sum(line.split(",")[-1] == "True" for line in (default_city / "roadmap.geo").read_text().splitlines())
    both_ways = default_store.manifest["statistics"]["roads"] - one_way
    assert one_way + both_ways / 2 <= len(lines) - 1 <= one_way + both_ways


def test_command_line_prints_one_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["demo-city", "--out", str(tmp_path / "city"), "trips.train=30", "trips.val=5", "trips.test=5"]
    monkeypatch.setattr("sys.argv", ["student-trainer", *arguments])
    assert command_line.main() == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trips"] == {"train": 30, "val": 5, "test": 5}
    assert (
        summary
        == {"out": str(tmp_path / "city")} | json.loads((tmp_path / "city" / "demo_city.json").read_text())["summary"]
    )


def test_only_a_demo_city_is_replaced(tmp_path: Path) -> None:
    city = DemoCityConfig(out=tmp_path / "city", trips=FEW)
    run(city)
    run(city.model_copy(update={"seed": 9}))
    assert json.loads((city.out / "demo_city.json").read_text())["settings"]["seed"] == 9
    (city.out / "demo_city.json").unlink()
    with pytest.raises(ConfigError, match="is not a demo city"):
        run(city)
    assert (city.out / "train.csv").exists()


def test_empty_city_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trips\.train"):
        configuration.load(DemoCityConfig, "demo-city", overrides=["out=x", "trips.train=0"])
