"""Sampled trips, judged as a whole against real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
from support.random_city import random_network, random_trips, write_random_store

from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store, Trips
from student_trainer.data.sampled import write_sampled
from student_trainer.evaluate import evaluation, metrics, run
from student_trainer.evaluate.config import EvaluateConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store", trips=300)


def evaluated(store: Store, trips: Trips, folder: Path, **values: object) -> dict[str, Any]:
    (folder / "trips").mkdir(parents=True)
    write_sampled(folder / "trips", trips, store, {"counts": {}})
    given = {"data": store.path, "trips": folder / "trips", "out": folder / "out", "bootstrap": {"draws": 100}}
    document = run.evaluate(EvaluateConfig.model_validate({**given, **values}))
    assert document == json.loads((folder / "out" / "metrics.json").read_text())
    return document


def test_the_real_trips_themselves_are_perfect(store: Store, tmp_path: Path) -> None:
    real = store.trips("test")
    document = evaluated(store, real, tmp_path)
    values = metrics.flat(document)
    assert {name: value for name, value in values.items() if "jsd_" in name and value > 0} == {}
    assert values["evaluate/roads_covered"] == values["evaluate/real_roads_covered"] > 0.5
    assert values["evaluate/roads_in_use_covered"] == values["evaluate/od_pair_match_rate_upstream"] == 1
    assert values["evaluate/roads_per_trip"] == real.lengths.mean()
    assert document["split"] == "test" and document["sampled"]["store"] == store.fingerprint
    assert "of real trips" in document["metrics"]["jsd_distance_bits"]["description"]
    assert "jsd_distance_bits" in run.table(document)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "metrics.json"]


def test_values_are_those_of_the_definitions(store: Store, tmp_path: Path) -> None:
    """Fewer sampled trips than real ones: as many real ones are drawn."""
    network, _ = random_network()
    trips, real = random_trips(network, 40, seed=77, longest=30), store.trips("test")
    document = evaluated(store, trips, tmp_path)
    values = metrics.flat(document)
    some = real.take(np.sort(np.random.default_rng(0).permutation(len(real))[:40]))
    roads, used = (set(side.roads.tolist()) for side in (trips, some))
    assert values["evaluate/roads_covered"] == pytest.approx(len(roads) / 30)
    assert values["evaluate/real_roads_covered"] == pytest.approx(len(used) / 30)
    assert values["evaluate/roads_in_use_covered"] == pytest.approx(len(roads & used) / len(used))
    durations = [side.times[side.offsets[1:] - 1] - side.times[side.offsets[:-1]] for side in (trips, some)]
    edges = np.append(np.linspace(0, durations[1].max(), 100), np.inf)
    made, own = (np.histogram(side, edges)[0].tolist() for side in durations)
    expected = scipy.spatial.distance.jensenshannon(made, own, base=2) ** 2
    assert values["evaluate/jsd_trip_duration_bits"] == pytest.approx(expected)
    assert expected > 0.1


def test_what_is_no_student_s_is_refused(store: Store, tmp_path: Path) -> None:
    trips = store.trips("test")
    with pytest.raises(ConfigError, match="sampled trips are a teacher's"):
        evaluated(store, trips, tmp_path / "one", weights=tmp_path / "weights")
    other = write_random_store(tmp_path / "other", seed=1)
    with pytest.raises(CompatibilityError, match="sampled on another store"):
        evaluated(store, trips, tmp_path / "two", data=other.path)


def test_compare_does_not_take_it_for_a_student_s(store: Store, tmp_path: Path) -> None:
    document = evaluated(store, store.trips("test"), tmp_path)
    assert document["format"] == evaluation.FORMAT_OF_SAMPLED
    with pytest.raises(FileFormatError, match=r"metrics.json is of trips that were sampled .* no pairs, .* cannot be"):
        evaluation.read(tmp_path / "out")
