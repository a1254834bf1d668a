"""The whole of prepare, against upstream's own features and on a small city with known answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, reference_path
from support.tiny_city import write_tiny_city

from shared import lock, teacher_file
from shared.errors import CompatibilityError, ConfigError, DataError
from shared.store import Store
from shared.vocab import Tokeniser, Vocabulary
from student_trainer.__main__ import JOBS
from student_trainer.data.network import RoadNetwork
from student_trainer.prepare import build, parts, records, splits
from student_trainer.prepare import run as prepare_run
from student_trainer.prepare.config import GridConfig, PrepareConfig, ZonesConfig
from student_trainer.prepare.run import run


@pytest.fixture
def tiny_city(tmp_path: Path) -> Path:
    return write_tiny_city(tmp_path / "tiny")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(reference_path("hoser", "reference_freqs.npz")))


@pytest.fixture(scope="module")
def city_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("prepared") / "store"
    run(PrepareConfig(raw=reference_path("hoser", "city"), out=out))
    return Store(out)


@pytest.mark.parametrize("name", ["attr_len", "attr_type", "attr_lon", "attr_lat"])
def test_road_attributes_are_upstreams(city_store: Store, reference: dict[str, np.ndarray], name: str) -> None:
    ours, theirs = city_store.network(name), reference[f"road_{name}"]
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["road_edge_index", "zone_edge_index"])
def test_edges_are_upstreams_in_order(city_store: Store, reference: dict[str, np.ndarray], name: str) -> None:
    np.testing.assert_array_equal(city_store.network(name), reference[name])


@pytest.mark.parametrize("name", ["intersection_attr", "zone_edge_weight"])
def test_edge_attributes_are_upstreams(city_store: Store, reference: dict[str, np.ndarray], name: str) -> None:
    assert city_store.network(name).dtype == np.float32
    np.testing.assert_allclose(city_store.network(name), reference[name], rtol=0, atol=1e-6)


def test_target_statistics_and_zone_matrix_are_upstreams(city_store: Store, reference: dict[str, np.ndarray]) -> None:
    statistics = city_store.manifest["statistics"]
    assert statistics["mu"] == pytest.approx(float(reference["mu"]), rel=1e-6)
    assert statistics["sigma"] == pytest.approx(float(reference["sigma"]), rel=1e-6)
    matrix = np.load(reference_path("hoser", "city", "zone_trans_mat.npy"))
    np.testing.assert_array_equal(city_store.network("zone_transitions"), matrix)


def test_candidates_are_upstreams(city_store: Store, reference: dict[str, np.ndarray]) -> None:
    offsets, successors = city_store.network("successor_offsets"), city_store.network("successors")
    for b, length in enumerate(reference["trace_len"]):
        for t in range(length):
            road, k = reference["trace_road_id"][b, t], reference["candidate_len"][b, t]
            np.testing.assert_array_equal(
                successors[offsets[road] : offsets[road + 1]], reference["candidate_road_id"][b, t, :k]
            )


def test_store_holds_what_its_readers_expect(city_store: Store) -> None:
    network = RoadNetwork.load(city_store)
    trips = city_store.trips("val")
    assert (network.num_roads, network.num_zones, network.num_types) == (408, 16, 5)
    assert (trips.roads.dtype, trips.times.dtype) == (np.dtype(np.int32), np.dtype(np.int64))
    assert city_store.manifest["splits"]["val"]["trips"] == len(trips) == 60
    points = city_store.network("vertex_mean")
    np.testing.assert_array_equal(city_store.road_token, city_store.tokeniser.tokens(points[:, 0], points[:, 1]))
    assert not list(city_store.path.parent.glob(".store*"))


def test_manifest_is_strict_json_and_names_its_inputs(city_store: Store) -> None:
    text = (city_store.path / "store.json").read_text()
    manifest = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {"roadmap.geo", "roadmap.rel", "train.csv", "val.csv", "test.csv", "road_network_partition"} == set(
        manifest["inputs"]
    )
    assert manifest["highway_classes"] == sorted(manifest["highway_classes"])


def append(path: Path) -> None:
    """One more trip."""
    with open(path, "a") as file:
        file.write('7,"0,1","2020-01-01T00:00:00Z,2020-01-01T00:00:09Z"\n')


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared_anew(config: PrepareConfig) -> dict[str, bytes]:
    """What the store holds if there was none before."""
    shutil.rmtree(config.out)
    run(config)
    return content(config.out)


@pytest.mark.parametrize("block_bytes", [300, 2**22])
def test_the_store_does_not_depend_on_workers_or_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(reference_path("hoser", "city"), raw)
    (raw / "road_network_partition").unlink()
    config = PrepareConfig(raw=raw, out=tmp_path / "store", workers=1)
    run(config)
    expected = content(config.out)
    monkeypatch.setattr(records, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(splits, "BLOCK_ROADS", block_bytes)
    for count in (1, 2, 5):
        assert prepared_anew(config.model_copy(update={"workers": count})) == expected


CHANGES: dict[str, tuple[Callable[[Path], object] | dict[str, Any], set[str]]] = {
    "test.csv": (lambda raw: append(raw / "test.csv"), {"test", "leaks"}),
    "val.csv": (lambda raw: append(raw / "val.csv"), {"val", "leaks", "measures"}),
    "train.csv": (lambda raw: append(raw / "train.csv"), {"train", "leaks", "measures", "flow"}),
    "partition": (lambda raw: (raw / "road_network_partition").write_text("0\n1\n0\n1\n0\n"), {"zones", "flow"}),
    "roads": (
        lambda raw: (raw / "roadmap.geo").write_text((raw / "roadmap.geo").read_text().replace("71.5", "71.6")),
        set(build.ORDER),
    ),
    "grid": ({"grid": GridConfig(cell_size=0.001)}, {"tokens", "measures"}),
    "zones": ({"zones": ZonesConfig(count=2, min_roads=1)}, {"zones", "flow"}),
    "strict": ({"strict": True}, {"train", "val", "test", "leaks", "measures", "flow"}),
    "workers": ({"workers": 2}, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_a_change_concerns_is_made_again(tmp_path: Path, tiny_city: Path, change: str) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store", workers=1)
    assert prepare_run.prepare(config).seconds.keys() == set(build.ORDER)
    inode = (config.out / "network" / "vertices.npy").stat().st_ino
    what, expected = CHANGES[change]
    if isinstance(what, dict):
        config = config.model_copy(update=what)
    else:
        what(tiny_city)
    assert prepare_run.prepare(config).seconds.keys() == expected
    if "roads" not in expected:
        assert (config.out / "network" / "vertices.npy").stat().st_ino == inode
    assert content(config.out) == prepared_anew(config)


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_is_of_roads_zones_and_trips(tmp_path: Path, tiny_city: Path, change: str) -> None:
    """Not of the grid, which has its own, nor of settings that left all as it was."""
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store", workers=1)
    run(config)
    before, what = Store(config.out), CHANGES[change][0]
    if isinstance(what, dict):
        config = config.model_copy(update=what)
    else:
        what(tiny_city)
    run(config)
    after = Store(config.out)
    is_same = change in ("grid", "strict", "workers")
    assert (before.fingerprint == after.fingerprint) == is_same
    assert (before.tokeniser.fingerprint == after.tokeniser.fingerprint) == (change != "grid")


def test_a_damaged_part_is_made_again_and_no_other(
    tmp_path: Path, tiny_city: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store", workers=1)
    run(config)
    expected = content(config.out)
    times = config.out / "train" / "times.npy"
    whole = times.read_bytes()
    for damaged in (b"half", whole[:-1] + bytes([whole[-1] ^ 1])):
        times.unlink()
        times.write_bytes(damaged)
        caplog.clear()
        assert prepare_run.prepare(config).seconds.keys() == {"train"}
        assert "files of train" in caplog.text and "made again" in caplog.text
        assert content(config.out) == expected
    (config.out / "parts.json").write_text('{"train": {"files": 3}}')
    assert prepare_run.prepare(config).seconds.keys() == set(build.ORDER)
    assert content(config.out) == expected


def test_other_code_makes_all_again_and_equal_content_keeps_its_fingerprint(
    tmp_path: Path, tiny_city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store", workers=1)
    run(config)
    before = Store(config.out).fingerprint
    monkeypatch.setattr(parts, "code_digest", lambda: "another")
    assert prepare_run.prepare(config).seconds.keys() == set(build.ORDER)
    assert Store(config.out).fingerprint == before


def test_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, tiny_city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = parts.made

    def and_meanwhile(*arguments: Any) -> parts.Part:
        append(tiny_city / "train.csv")
        return write(*arguments)

    monkeypatch.setattr(parts, "made", and_meanwhile)
    with pytest.raises(DataError, match="changed while they were read"):
        run(PrepareConfig(raw=tiny_city, out=tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


ENDLESS = """
import contextlib, itertools, os, sys
from pathlib import Path
from student_trainer.prepare.config import GridConfig, PrepareConfig
from student_trainer.prepare.run import prepare

raw, out = map(Path, sys.argv[1:])
configs = [PrepareConfig(raw=raw, out=out, grid=GridConfig(cell_size=size), workers=2) for size in (0.001, 0.0005)]
for config in itertools.cycle(configs):
    prepare(config)
    print("ready", flush=True)
"""


@pytest.mark.integration
def test_a_run_that_is_killed_leaves_a_whole_store(tmp_path: Path, tiny_city: Path) -> None:
    for split in ("train", "val", "test"):
        for _ in range(300):
            append(tiny_city / f"{split}.csv")
    configs = [
        PrepareConfig(raw=tiny_city, out=tmp_path / "store", grid=GridConfig(cell_size=size))
        for size in (0.001, 0.0005)
    ]
    run(configs[0])
    whole = [prepared_anew(config) for config in configs]
    delays, found = np.random.default_rng(0).uniform(0, 0.2, 10), []
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, tiny_city, configs[0].out], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        left = content(configs[0].out)
        left.pop(lock.NAME, None)  # nobody has locked it any more
        found.append(whole.index(left))  # ValueError if it is neither
    run(configs[1 - found[-1]])
    assert content(configs[0].out) == whole[1 - found[-1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "tiny"]


def test_same_input_is_up_to_date_and_other_settings_replace(tmp_path: Path, tiny_city: Path) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store")
    run(config)
    first = (config.out / "store.json").stat().st_mtime_ns
    run(config)
    assert (config.out / "store.json").stat().st_mtime_ns == first
    run(config.model_copy(update={"grid": GridConfig(cell_size=0.001)}))
    assert Store(config.out).manifest["grid"]["cell_lat"] == 0.001


def test_changed_input_and_damaged_store_are_prepared_again(tmp_path: Path, tiny_city: Path) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store")
    run(config)
    before = Store(config.out).fingerprint
    (config.out / "train" / "roads.npy").unlink()
    run(config)
    assert len(Store(config.out).trips("train")) == 2
    append(tiny_city / "val.csv")
    run(config)
    assert Store(config.out).fingerprint != before


def test_other_directories_are_left_alone(tmp_path: Path, tiny_city: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    for out in (precious, tiny_city, precious / "thesis.tex"):
        with pytest.raises(ConfigError, match=r"is not a (store|directory)"):
            run(PrepareConfig(raw=tiny_city, out=out))
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_interruption_leaves_the_old_store(tmp_path: Path, tiny_city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PrepareConfig(raw=tiny_city, out=tmp_path / "store")
    run(config)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    fingerprint = Store(config.out).fingerprint

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_run.files, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config.model_copy(update={"strict": True}))
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    assert Store(config.out).fingerprint == fingerprint


def test_partition_is_computed_deterministically_where_there_is_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for file in reference_path("hoser", "city").iterdir():
        if file.name not in ("road_network_partition", "zone_trans_mat.npy"):
            (raw / file.name).write_bytes(file.read_bytes())
    zones = []
    for name in ("a", "b"):
        run(PrepareConfig(raw=raw, out=tmp_path / name, zones=ZonesConfig(count=300, min_roads=20)))
        zones.append(Store(tmp_path / name).network("road_zone"))
    np.testing.assert_array_equal(zones[0], zones[1])
    sizes = np.bincount(zones[0])
    assert len(sizes) == 408 // 20
    assert sizes.max() <= 2 * 20
    assert capfd.readouterr().out.startswith("network   408 roads")


def test_teachers_grid_and_vocabulary_are_taken_as_they_are(tmp_path: Path, tiny_city: Path) -> None:
    run(PrepareConfig(raw=tiny_city, out=tmp_path / "first", grid=GridConfig(cell_size=0.0007, centroid="line")))
    theirs = Store(tmp_path / "first").tokeniser
    teacher_file.write(tmp_path / "teacher", {"w": np.zeros(1, np.float32)}, {}, theirs, {})
    run(PrepareConfig(raw=tiny_city, out=tmp_path / "second", grid=GridConfig(teacher=tmp_path / "teacher")))
    ours = Store(tmp_path / "second")
    assert ours.tokeniser.fingerprint == theirs.fingerprint
    np.testing.assert_array_equal(ours.road_token, Store(tmp_path / "first").road_token)
    assert [line["cell_size"] for line in ours.manifest["collisions"] if line["chosen"]] == [0.0007]


def test_teacher_of_another_city_is_refused(tmp_path: Path, tiny_city: Path) -> None:
    run(PrepareConfig(raw=tiny_city, out=tmp_path / "s", grid=GridConfig(bounds=(0, 0, 1, 1), max_outside=1)))
    assert Store(tmp_path / "s").manifest["statistics"]["roads_outside_grid"] == 5
    teacher_file.write(tmp_path / "t", {"w": np.zeros(1, np.float32)}, {}, Store(tmp_path / "s").tokeniser, {})
    with pytest.raises(CompatibilityError, match="5 of 5 roads lie outside the grid"):
        run(PrepareConfig(raw=tiny_city, out=tmp_path / "x", grid=GridConfig(teacher=tmp_path / "t")))
    teacher_file.write(tmp_path / "t", {"w": np.zeros(1, np.float32)}, {}, Tokeniser(Vocabulary.full(9), None), {})
    with pytest.raises(CompatibilityError, match="no grid"):
        run(PrepareConfig(raw=tiny_city, out=tmp_path / "x", grid=GridConfig(teacher=tmp_path / "t")))
    assert not (tmp_path / "x").exists()


def test_one_zone_is_one(tmp_path: Path, tiny_city: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(PrepareConfig(raw=tiny_city, out=tmp_path / "store"))
    assert "1 zone instead of 300: 10 roads a zone at least" in caplog.messages


def test_full_vocabulary_has_a_token_for_every_cell(tmp_path: Path, tiny_city: Path) -> None:
    run(PrepareConfig(raw=tiny_city, out=tmp_path / "s", grid=GridConfig(vocabulary="full")))
    store = Store(tmp_path / "s")
    assert store.tokeniser.vocabulary.occupied is None
    assert store.tokeniser.grid is not None
    assert store.tokeniser.vocabulary.cells == store.tokeniser.grid.cells
    assert not (tmp_path / "s" / "network" / "occupied_cells.npy").exists()


def test_absurd_cell_size_is_refused(tmp_path: Path, tiny_city: Path) -> None:
    with pytest.raises(ConfigError, match="choose a larger one"):
        run(PrepareConfig(raw=tiny_city, out=tmp_path / "s", grid=GridConfig(cell_size=1e-9)))


def test_teacher_contradicts_other_grid_settings() -> None:
    with pytest.raises(ValueError, match=r"grid\.teacher decides cell_size"):
        GridConfig(teacher=Path("t"), cell_size=0.001)


def test_every_flag_is_a_setting() -> None:
    job = next(job for job in JOBS if job.name == "prepare")
    assert {flag.key for flag in job.flags} <= set(PrepareConfig.model_fields)
