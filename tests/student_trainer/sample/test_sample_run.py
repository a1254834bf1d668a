"""The command through a running daemon: bits, files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import RunningTeacher, start_teacher, write_tiny_teacher
from support.random_city import write_random_store
from support.tiny_city import write_tiny_city

from shared import files, teacher_file
from shared.errors import CompatibilityError, ConfigError
from shared.store import Store, Trips
from student_trainer.data.sampled import load_sampled
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare
from student_trainer.sample import run
from student_trainer.sample.config import SampleConfig

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store")


@pytest.fixture(scope="module")
def teacher(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTeacher]:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    with start_teacher(path) as running:
        yield running


def settings(store: Store, teacher: RunningTeacher, out: Path, **values: object) -> SampleConfig:
    return SampleConfig.model_validate({"data": store.path, "teacher": teacher.address, "out": out, **values})


def same(one: Trips, other: Trips) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize("policy", ["teacher", "destination"])
@pytest.mark.parametrize("window", [4, 0])
def test_the_same_seed_gives_the_same_trips(
    store: Store, teacher: RunningTeacher, tmp_path: Path, policy: str, window: int
) -> None:
    """Whatever the requests: one walker in each, or all."""
    values = {"trips": 40, "policy": policy, "window": window, "max_roads": 60}
    document = run.sample(settings(store, teacher, tmp_path / "one", **values))
    made = load_sampled(tmp_path / "one", store)
    run.sample(settings(store, teacher, tmp_path / "other", **values, walkers=3, client={"lookahead": 2}))
    assert same(made, load_sampled(tmp_path / "other", store))
    run.sample(settings(store, teacher, tmp_path / "seed", **values, seed=1))
    assert not same(made, load_sampled(tmp_path / "seed", store))

    assert len(made) == document["counts"]["trips"] == 40
    assert document == json.loads((tmp_path / "one" / "sampled.json").read_text())
    assert document["format"] == "hoser-sampled/1" and document["store"] == store.fingerprint
    assert document["teacher"]["revision"] == teacher.ready["weights_revision"]
    assert document["settings"]["policy"] == policy
    counts = document["counts"]
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    assert counts["walkers"] == 40 + dropped == made.source_rows[-1] + 1
    assert counts["roads_per_trip"] == pytest.approx(made.lengths.mean())
    assert document["rates"]["positions"] >= made.lengths.sum() - 40
    if policy == "destination":
        assert made.roads[made.offsets[1:] - 1].tolist() != []
        ends = store.trips("train")
        assert np.isin(made.roads[made.offsets[1:] - 1], ends.roads[ends.offsets[1:] - 1]).all()


def test_csv_is_what_prepare_reads(tmp_path: Path) -> None:
    """Prepared again as a training split, with the store's grid, the trips are the same."""
    raw = write_tiny_city(tmp_path / "raw")
    store = Store(prepared(raw, tmp_path / "store"))
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with start_teacher(tmp_path / "teacher") as server:
        run.sample(settings(store, server, tmp_path / "sampled", trips=30, csv=True, max_roads=20))
    made = load_sampled(tmp_path / "sampled", store)
    (raw / "train.csv").write_bytes((tmp_path / "sampled" / "trips.csv").read_bytes())
    again = Store(prepared(raw, tmp_path / "again")).trips("train")
    assert same(again, Trips(made.roads, made.times, made.offsets, np.arange(30)))


def prepared(raw: Path, out: Path) -> Path:
    values = {"raw": raw, "out": out, "zones": {"count": 2, "min_roads": 2}, "grid": {"cell_size": 0.001}}
    prepare(PrepareConfig.model_validate(values))
    return out


def test_out_is_replaced_only_if_that_is_wanted(store: Store, teacher: RunningTeacher, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.sample(settings(store, teacher, out, trips=5))
    before = {path.name: files.file_digest(path) for path in out.iterdir()}
    with pytest.raises(ConfigError, match=r"out holds sampled trips; .* replace=true"):
        run.sample(settings(store, teacher, out, trips=6))
    assert {path.name: files.file_digest(path) for path in out.iterdir()} == before
    run.sample(settings(store, teacher, out, trips=6, replace=True))
    assert len(load_sampled(out, store)) == 6
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(ConfigError, match="is not a directory of sampled trips"):
        run.sample(settings(store, teacher, tmp_path / "mine", replace=True))


def test_teachers_that_do_not_fit_are_refused(
    store: Store, teacher: RunningTeacher, tiny_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompatibilityError, match=r"^window 16 is longer than the teacher at .* can see: 15"):
        run.sample(settings(store, teacher, tmp_path / "out", window=16))
    assert teacher_file.read_header(tiny_teacher).tokeniser.fingerprint != store.tokeniser.fingerprint
    with start_teacher(tiny_teacher) as other, pytest.raises(CompatibilityError, match="do not share grid"):
        run.sample(settings(store, other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
