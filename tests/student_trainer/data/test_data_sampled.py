"""Sampled trips on disk: read as they were written, and refused where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.random_city import random_trips, write_random_store

from shared import subset
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store, Trips
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import ARRAYS, is_sampled, load_sampled, write_sampled


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_random_store(tmp_path / "store")


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    path = tmp_path / "sampled"
    path.mkdir()
    write_sampled(path, random_trips(RoadNetwork.load(store), 20, seed=4), store, {"counts": {"trips": 20}})
    return path


def test_trips_are_read_as_they_were_written(store: Store, folder: Path) -> None:
    written, read = random_trips(RoadNetwork.load(store), 20, seed=4), load_sampled(folder, store)
    assert isinstance(read, Trips) and len(read) == 20
    for name in ARRAYS:
        assert np.array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(store.trips("train"), name).dtype
    assert is_sampled(folder) and not is_sampled(store.path)


def test_another_store_s_are_refused(folder: Path, tmp_path: Path) -> None:
    other = write_random_store(tmp_path / "other", seed=1)
    with pytest.raises(CompatibilityError, match=r"sampled was sampled on another store than .*other .*sample again"):
        load_sampled(folder, other)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "sampled.json"])
def test_missing_and_damaged_files_are_refused(store: Store, folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    changed = bytearray(content)
    changed[-3] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(FileFormatError, match=rf"{name} .*student-trainer sample"):
        load_sampled(folder, store)
    (folder / name).unlink()
    with pytest.raises(FileFormatError, match=rf"{name}.*student-trainer sample"):
        load_sampled(folder, store)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "hoser-sampled/9"}, "is of another version"),
        ({"store": 3}, "does not name its store"),
        ({"files": {}}, "does not list the digests"),
        ({"files": [1]}, "does not list the digests"),
    ],
)
def test_documents_of_another_kind_are_refused(
    store: Store, folder: Path, changed: dict[str, object], message: str
) -> None:
    path = folder / "sampled.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(FileFormatError, match=message):
        load_sampled(folder, store)


def test_what_no_store_would_hold_is_refused(store: Store, tmp_path: Path) -> None:
    network = RoadNetwork.load(store)
    good = random_trips(network, 3, seed=4)
    strangers = np.setdiff1d(np.arange(30), network.successors[: network.successor_offsets[1]])
    cases = {
        "a road that .* lacks": ("roads", np.where(np.arange(len(good.roads)) == 1, 30, good.roads)),
        "leaves the road network": ("roads", np.array([0, strangers[0]], np.int32)),
        "goes back in time": ("times", good.times[::-1].copy()),
        "do not fit together": ("times", good.times[1:]),
        "fewer than two roads": ("offsets", np.array([0, 1, 2, len(good.roads)])),
    }
    for number, (message, (name, values)) in enumerate(cases.items()):
        arrays = {**vars(good), name: values.astype(getattr(good, name).dtype)}
        if len(arrays["roads"]) == 2:
            arrays |= {"times": np.array([0, 1]), "offsets": np.array([0, 2]), "source_rows": np.array([0])}
        folder = tmp_path / str(number)
        folder.mkdir()
        write_sampled(folder, Trips(**arrays), store, {})
        with pytest.raises(FileFormatError, match=message):
            load_sampled(folder, store)


def test_a_sample_of_labelled_trips_depends_on_its_size_and_seed(store: Store) -> None:
    train = store.trips("train")
    chosen = subset.choose(train, 10, 3, "batch.train_trips", "training")
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == 10
    assert chosen.tolist() == np.sort(np.random.default_rng(3).permutation(60)[:10]).tolist()
    assert subset.choose(train, 0, 3, "s", "k").tolist() == list(range(60))
    with pytest.raises(ConfigError, match=r"batch\.train_trips is 61, but the store has 60 training trips"):
        subset.choose(train, 61, 3, "batch.train_trips", "training")
