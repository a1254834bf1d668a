"""Networks of GeoJSON and OpenStreetMap, and trips as rows, become what `prepare` reads."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lattice_city import NODES, WAYS, feature, metres, walk, write_network, write_trips
from support.setting_reads import reads_all_of, recorded_reads, settings_of

from shared.errors import ConfigError, DataError
from shared.store import Store, Trips
from student_trainer.__main__ import main as _main
from student_trainer.convert import geojson, network, osm, trips
from student_trainer.convert.config import ConvertConfig, NetworkConfig, SplitConfig, TripsConfig
from student_trainer.convert.run import run, split
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare


@pytest.fixture
def city(tmp_path: Path) -> ConvertConfig:
    random = np.random.default_rng(0)
    return ConvertConfig(
        roads=write_network(tmp_path / "roads.geojson"),
        trips=write_trips(tmp_path / "trips.csv", [walk(random, 4 + n % 3) for n in range(30)]),
        out=tmp_path / "raw",
        network=NetworkConfig(id=("u", "v", "key")),
    )


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_converted_city_is_prepared_as_it_is(city: ConvertConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Every trip arrives, with its roads and times; the network has the lattice's links and lengths."""
    assert run(city) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert "warning" not in printed.err
    assert summary["trips"] == {"train": 24, "val": 3, "test": 3}
    assert (summary["roads"], summary["repeated_rows"]) == (24, 0)
    geo, names = table(city.out / "roadmap.geo"), [f"{a}-{b}-0" for a, b in WAYS]
    assert [row["source_id"] for row in geo] == names
    assert {row["highway"] for row in geo} == {"primary"}
    np.testing.assert_allclose([float(row["length"]) for row in geo], [metres(*way) for way in WAYS], atol=0.005)
    links = {(int(row["origin_id"]), int(row["destination_id"])) for row in table(city.out / "roadmap.rel")}
    assert links == {(i, j) for i, (_, b) in enumerate(WAYS) for j, (c, _) in enumerate(WAYS) if b == c}
    found = {
        tuple(names[int(road)] for road in row["rid_list"].split(",")): row["time_list"]
        for part in ("train", "val", "test") for row in table(city.out / f"{part}.csv")
    }  # fmt: skip
    random = np.random.default_rng(0)
    walks = [tuple(f"{road}-0" for road in walk(random, 4 + n % 3)) for n in range(30)]
    assert set(walks) == found.keys()
    assert found[walks[1]].startswith("2020-01-01T01:00:00Z,2020-01-01T01:00:10Z,")
    manifest = prepare(PrepareConfig(raw=city.out, out=city.out.parent / "store")).manifest
    assert manifest["findings"] == []
    assert not any(sum(manifest["dropped"][part].values()) for part in ("train", "val", "test"))
    assert len(Store(city.out.parent / "store").trips("train")) == 24


@reads_all_of("convert")
def test_convert_reads_all(city: ConvertConfig) -> None:
    """But the classes of OpenStreetMap's roads, which `test_openstreetmap_files_are_read` sees at work."""
    with recorded_reads() as reads:
        run(city)
    assert settings_of(ConvertConfig) - reads <= {("NetworkConfig", "classes")}


def test_the_same_input_gives_the_same_bytes_and_replaces_only_itself(city: ConvertConfig, tmp_path: Path) -> None:
    run(city)
    before = {path.name: path.read_bytes() for path in city.out.iterdir()}
    run(city)
    assert {path.name: path.read_bytes() for path in city.out.iterdir()} == before
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a converted city"):
        run(city.model_copy(update={"out": tmp_path / "precious"}))


def rows(path: Path, *lines: str, header: str = "trip,road,time") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


NUMBERS = {"a": 0, "b": 1, "c": 2}


def test_rows_may_stand_anywhere_and_repeat_a_road(tmp_path: Path) -> None:
    """Points matched to the same road: the first says when it is entered. Trips keep their order, and may mix."""
    path = rows(tmp_path / "t.csv", "y,b,30", "x,a,20", "x,c,40", "y,a,10", "x,a,25.9", "z,lost,1", "y,b,35", "x,b,30")
    found = trips.read(path, TripsConfig(), NUMBERS)
    assert found.trips.roads.tolist() == [0, 1, 0, 1, 2]
    assert found.trips.times.tolist() == [10, 30, 20, 30, 40]
    assert found.trips.offsets.tolist() == [0, 2, 5]
    assert (found.trips_in_file, found.unknown, found.example, found.repeated) == (3, 1, "lost", 2)


@pytest.mark.parametrize(
    "written",
    [
        "2008-05-22T13:10:06Z",
        "2008-05-22 13:10:06",
        "2008-05-22 13:10:06.75",
        "2008-05-22T13:10:06+08:00",
        "1211461806",
    ],
)
def test_times_are_those_of_the_clock_that_is_printed(tmp_path: Path, written: str) -> None:
    found = trips.read(rows(tmp_path / "t.csv", f"x,a,{written}"), TripsConfig(), NUMBERS)
    assert found.trips.times.tolist() == [1_211_461_806]


def test_columns_have_names_of_their_own(tmp_path: Path) -> None:
    path = rows(tmp_path / "t.csv", "1,x,2008-05-22 13:10,a", header="n,vehicle,when,edge")
    found = trips.read(path, TripsConfig(trip="vehicle", road="edge", time="when"), NUMBERS)
    assert (found.trips.roads.tolist(), found.trips.times.tolist()) == ([0], [1_211_461_800])


BAD_TRIPS = {
    "no column": (("x,a,1",), "trip,edge,time", "has no column road; it has 'trip', 'edge', 'time'"),
    "its remedy": (("x,a,1",), "trip,edge,time", "columns.road="),
    "time": (
        ("x,a,2020-01-01 10:00:00", "x,b,noon"),
        "trip,road,time",
        "row 1 (line 3), column time: expected seconds since 1970",
    ),
    "milliseconds": (("x,a,1211461806000",), "trip,road,time", "is it one in milliseconds?"),
    "empty": (("x,a,10", "x,,20"), "trip,road,time", "row 1 (line 3), column road: empty"),
    "no rows": ((), "trip,road,time", "holds no row"),
}


@pytest.mark.parametrize("case", BAD_TRIPS)
def test_trips_that_cannot_be_read_are_refused_by_row_and_column(tmp_path: Path, case: str) -> None:
    lines, header, message = BAD_TRIPS[case]
    with pytest.raises(DataError) as caught:
        trips.read(rows(tmp_path / "t.csv", *lines, header=header), TripsConfig(), NUMBERS)
    assert message in str(caught.value) and "t.csv" in str(caught.value)


LINE = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
BAD_NETWORKS: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"properties": {}, "geometry": LINE}, "feature 0: has no id; name what the trips call a road"),
    "no geometry": ({"properties": {"id": 1}, "geometry": None}, "feature 0: has no geometry"),
    "a point": ({"properties": {"id": 1}, "geometry": {"type": "Point", "coordinates": [0, 0]}}, "is a Point; roads"),
    "metres": (
        {"properties": {"id": 1}, "geometry": {"type": "LineString", "coordinates": [[530000, 180000], [1, 1]]}},
        "is not longitude and latitude, degrees; convert the file: ogr2ogr",
    ),
    "length": ({"properties": {"id": 1, "length": "long"}, "geometry": LINE}, "length should be metres, not 'long'"),
    "class": ({"properties": {"id": 1, "highway": "[a"}, "geometry": LINE}, "looks like a list of road classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_features_that_are_no_roads_are_refused_by_number(tmp_path: Path, case: str) -> None:
    bad, message = BAD_NETWORKS[case]
    with pytest.raises(DataError) as caught:
        geojson.read(write_network(tmp_path / "n.json", [bad]), NetworkConfig())
    assert message in str(caught.value) and "n.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as GeoJSON"),
        ("[]", "no GeoJSON FeatureCollection"),
        ('{"features": [], "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}}', "ogr2ogr -t_srs EPSG:4326"),
        ('{"features": [{"geometry": NaN}]}', "NaN is no number"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(DataError, match=message):
        geojson.read(tmp_path / "n.json", NetworkConfig())


def test_two_way_features_are_two_roads(tmp_path: Path) -> None:
    features = [feature(0, 1, id=5), feature(1, 2, id=6.0, oneway=True), feature(2, 5, id="x", oneway="-1")]
    roads, odd = geojson.read(write_network(tmp_path / "n.json", features), NetworkConfig(directions="oneway"))
    assert odd == []
    assert [road.name for road in roads] == ["5", "-5", "6", "-x"]
    assert roads[1].line == roads[0].line[::-1] and roads[3].line == (NODES[5], NODES[2])
    assert roads[0].length == pytest.approx(metres(0, 1), rel=1e-12)  # measured, where the file says nothing
    as_given, _ = geojson.read(tmp_path / "n.json", NetworkConfig())
    assert [road.name for road in as_given] == ["5", "6", "x"]


def test_u_turns_can_be_left_out() -> None:
    roads = [network.Road(f"{a}-{b}", (NODES[a], NODES[b]), "x", 1.0) for a, b in ((0, 1), (1, 0), (1, 2))]
    assert set(network.successors(roads, u_turns=True)) == {(0, 1), (0, 2), (1, 0)}
    assert set(network.successors(roads, u_turns=False)) == {(0, 2)}


def test_two_roads_of_one_name_are_refused(city: ConvertConfig) -> None:
    with pytest.raises(DataError, match=r"two roads are called '\[7, 8\]'.*network.id=u,v,key"):
        run(city.model_copy(update={"network": NetworkConfig(id=("osmid",))}))


def test_what_is_dropped_is_told_with_a_remedy(
    city: ConvertConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(1)
    walks = [walk(random, 5) for _ in range(12)]
    walks[3][2] = "8-8"
    walks[5], walks[6] = ["0-1", "2-5"], ["0-1", "1-4", "7-8"]
    assert run(city.model_copy(update={"trips": write_trips(tmp_path / "t.csv", [*walks, walks[0][:1]])})) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["dropped"] == {
        "unknown_road": 1, "too_short": 1, "off_network": 2, "time_backwards": 0,
    }  # fmt: skip
    assert (
        "1 of 13 trips names roads that the network has not, as '8-8-0'; its roads are called as '0-1-0'" in printed.err
    )
    assert "t.csv: of 13 trips dropped: 1 unknown_road, 1 too_short, 2 off_network. Trips must name" in printed.err
    assert "in the direction of travel, without gaps" in printed.err
    with pytest.raises(DataError) as caught:
        run(city.model_copy(update={"network": NetworkConfig(id=("u", "v"))}))
    assert str(caught.value).endswith(
        "has 0 usable trips, too few for train, val, test, each of which needs one or more: of 30 trips dropped: "
        "30 unknown_road. Roads must be called in the trips as in the network (see network.id and network.directions), "
        f"not {walk(np.random.default_rng(0), 4)[0] + '-0'!r}."
    )


def test_too_few_good_trips_are_told_as_such(city: ConvertConfig, tmp_path: Path) -> None:
    """Nothing is wrong with the names of a single good trip's roads."""
    one = write_trips(tmp_path / "t.csv", [walk(np.random.default_rng(1), 5)])
    with pytest.raises(DataError) as caught:
        run(city.model_copy(update={"trips": one}))
    assert str(caught.value).endswith(
        "t.csv has 1 usable trip, too few for train, val, test, each of which needs one or more: of 1 trip none was "
        "dropped. Give more trips; columns.trip says which rows are one"
    )


LACKING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another name": ({"fclass": "primary"}, {}, "'highway' (network.highway), so every road is unclassified; name"),
    "null": ({"highway": None, "fclass": "primary"}, {}, "'highway' (network.highway), so every road is"),
    "misspelt": ({"fclass": "primary"}, {"highway": "flcass"}, "'flcass' (network.highway), so every road is"),
    "one way": (
        {"highway": "primary", "fclass": "primary"},
        {"directions": "oneway"},
        "'oneway' (network.directions=oneway), so every feature is two roads",
    ),
    "length": (
        {"highway": "primary", "fclass": "primary"},
        {"length": "metres"},
        "'metres' (network.length), so every line is measured",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_property_that_no_feature_has_is_named(tmp_path: Path, case: str) -> None:
    """With those that the first one has."""
    properties, settings, said = LACKING[case]
    line = {"type": "LineString", "coordinates": [list(NODES[0]), list(NODES[1])]}
    features = [{"properties": {"id": n, "name": "", **properties}, "geometry": line} for n in (1, 2)]
    path = write_network(tmp_path / "n.json", features)
    roads, (sentence,) = geojson.read(path, NetworkConfig(**settings))
    assert sentence.startswith(f"n.json: no feature has a value of the property {said}")
    assert "The first feature has 'id', " in sentence and sentence.endswith("'fclass'")
    if "highway" in said:
        assert {road.highway for road in roads} == {"unclassified"}
    features[1]["properties"] = {"id": 2, "highway": "primary", "flcass": "x", "oneway": False, "metres": 3}
    assert geojson.read(write_network(path, features), NetworkConfig(**settings))[1] == []


def test_convert_tells_of_a_missing_class(city: ConvertConfig, capsys: pytest.CaptureFixture[str]) -> None:
    write_network(city.roads, [feature(a, b, highway=None, length=metres(a, b)) for a, b in WAYS])
    assert run(city) == 0
    assert "warning: roads.geojson: no feature has a value of the property 'highway'" in capsys.readouterr().err


def test_trips_that_come_twice_are_told_as_by_prepare(city: ConvertConfig, capsys: pytest.CaptureFixture[str]) -> None:
    lines = city.trips.read_text().splitlines()
    copies = [f"copy-{copy}-{line}" for copy in range(9) for line in lines[1:]]
    rows(city.trips, *lines[1:], *copies)
    assert run(city) == 0
    warnings = [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert [line.split(" (")[0] for line in warnings] == [
        f"{name}.csv: 100 % of {name} trips are in train, too" for name in ("val", "test")
    ]
    manifest = prepare(PrepareConfig(raw=city.out, out=city.out.parent / "store")).manifest
    assert manifest["findings"] == warnings


def test_the_next_command_has_the_store_beside_out(city: ConvertConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(city)
    store = city.out.parent / "store"
    assert f"next: student-trainer prepare --raw {city.out} --out {store}" in caplog.messages


@pytest.mark.parametrize("name", ["roads.geojson", "roads.geojson.gz"])
def test_a_compressed_network_is_refused_with_the_command(city: ConvertConfig, tmp_path: Path, name: str) -> None:
    text = city.roads.read_bytes()
    city.roads.unlink()
    (tmp_path / name).write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match=r"compressed with gzip; unpack it: .*gunzip < \S+ > \S+roads\.geojson$"):
        run(city.model_copy(update={"roads": tmp_path / name}))


def test_odd_data_are_told_as_by_prepare(city: ConvertConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths in kilometres, and every trip at midnight."""
    write_network(city.roads, [feature(a, b, length=metres(a, b) / 1000) for a, b in WAYS])
    random = np.random.default_rng(0)
    lines = [
        f"t{trip},{road}-0,2020-01-{trip + 1:02}T00:00:{11 * step:02}Z"
        for trip in range(30) for step, road in enumerate(walk(random, 3 + trip % 3))
    ]  # fmt: skip
    rows(city.trips, *lines)
    assert run(city) == 0
    told = capsys.readouterr().err
    assert "warning: roadmap.geo, column length: the median of 24 roads is 0.00" in told
    assert "train.csv: 100.0 % of 24 trips begin at 00:00:00: a placeholder" in told


@pytest.mark.parametrize("by", ["random", "time"])
def test_splits_share_no_trip_and_time_keeps_the_latest_for_test(by: Any) -> None:
    start = np.random.default_rng(3).permutation(40) * 1000
    kept = Trips(
        np.zeros(80, np.int32), np.stack([start, start + 1], 1).reshape(-1), np.arange(0, 81, 2), np.arange(40)
    )
    parts = split(kept, SplitConfig(by=by, val=0.25, test=0.1))
    assert {name: len(part) for name, part in parts.items()} == {"train": 26, "val": 10, "test": 4}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(40))
    if by == "time":
        assert start[parts["train"]].max() < start[parts["val"]].min() < start[parts["test"]].min()
    few = split(kept.take(np.arange(3)), SplitConfig(by=by, val=0.5, test=0.4))
    assert {name: len(part) for name, part in few.items()} == {"train": 1, "val": 1, "test": 1}


OSM_WAYS: list[tuple[Sequence[int], dict[str, str]]] = [
    ((1, 2, 3), {"highway": "residential"}),
    ((3, 6), {"highway": "primary", "oneway": "yes"}),
    ((2, 5), {"highway": "primary", "oneway": "-1"}),
    ((5, 6), {"highway": "motorway"}),
    ((4, 5), {"highway": "footway"}),
    ((7, 8), {"highway": "residential", "access": "private"}),
    ((3, 9, 6), {"highway": "tertiary", "oneway": "yes"}),
    ((6, 99), {"highway": "residential"}),  # 99 lies outside the extract
]
OSM_NAMES = ["1-2", "2-1", "2-3", "3-2", "3-6", "5-2", "5-6", "3-6-1"]


def osm_ways() -> list[osm.Way]:
    return [
        osm.Way(nodes, [NODES[node - 1] for node in nodes], tags)
        for nodes, tags in OSM_WAYS if 99 not in nodes and tags["highway"] != "footway" and "access" not in tags
    ]  # fmt: skip


def test_ways_are_cut_where_they_meet() -> None:
    roads = list(osm.roads_of(osm_ways()))
    assert [road.name for road in roads] == OSM_NAMES
    assert [road.highway for road in roads] == ["residential"] * 4 + ["primary"] * 2 + ["motorway", "tertiary"]
    assert roads[7].line == (NODES[2], NODES[8], NODES[5])
    assert roads[7].length == pytest.approx(metres(2, 8) + metres(8, 5), rel=1e-12)
    assert roads[5].line == (NODES[4], NODES[1])


@pytest.fixture
def osm_file(tmp_path: Path) -> Path:
    pytest.importorskip("osmium", reason="of the extra [convert]")
    nodes = "".join(f'<node id="{n + 1}" lat="{lat:.7f}" lon="{lng:.7f}"/>' for n, (lng, lat) in NODES.items())
    ways = ""
    for number, (members, tags) in enumerate(OSM_WAYS, 1):
        inside = [f'<nd ref="{node}"/>' for node in members] + [f'<tag k="{k}" v="{v}"/>' for k, v in tags.items()]
        ways += f'<way id="{number}">{"".join(inside)}</way>'
    path = tmp_path / "city.osm"
    path.write_text(f'<?xml version="1.0"?><osm version="0.6">{nodes}{ways}</osm>')
    return path


WRONG_CLASSES = {
    "no road": (("trunk", "x"), "city.osm holds no road for cars of the classes in network.classes: trunk, x"),
    "no link": (("tertiary",), "no road begins where another ends; does network.classes leave out the roads between?"),
    "other names": (
        ("residential",),
        "of 5 trips dropped: 5 unknown_road. Roads must be called in the trips as in the network (FROM-TO, by the "
        "nodes at which ways of network.classes are cut), not '1-2'.",
    ),
}


@pytest.mark.parametrize("case", WRONG_CLASSES)
def test_what_comes_of_the_classes_is_told_as_such(osm_file: Path, tmp_path: Path, case: str) -> None:
    classes, said = WRONG_CLASSES[case]
    walks = rows(tmp_path / "t.csv", *[f"{n},{road},{10 * n}" for n in range(5) for road in ("1-2", "2-3")])
    settings = NetworkConfig(classes=classes)
    with pytest.raises(DataError) as caught:
        run(ConvertConfig(roads=osm_file, trips=walks, out=tmp_path / "raw", network=settings))
    assert said in str(caught.value)
    assert "network.id" not in str(caught.value)


def test_openstreetmap_files_are_read(osm_file: Path, tmp_path: Path) -> None:
    """As the ways that they hold, without those that are not for cars; an extract's edge cuts what leaves it."""
    roads, plain = osm.read(osm_file, NetworkConfig()), list(osm.roads_of(osm_ways()))
    assert [(road.name, road.highway) for road in roads] == [(road.name, road.highway) for road in plain]
    for road, other in zip(roads, plain, strict=True):
        np.testing.assert_allclose(road.line, other.line, atol=5e-8)
    (tmp_path / "broken.osm").write_text("<osm>")
    with pytest.raises(DataError, match=r"broken\.osm cannot be read as OpenStreetMap data"):
        osm.read(tmp_path / "broken.osm", NetworkConfig())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def typed(*argv: object) -> int:
        monkeypatch.setattr("sys.argv", ["student-trainer", "convert", *map(str, argv)])
        return _main()

    return typed


def test_the_command_says_what_is_missing(
    city: ConvertConfig, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--roads", city.roads, "--trips", city.trips, "--out", city.out)
    assert command(*arguments, "network.id=u,v,key") == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(city.out)
    assert command("--roads", tmp_path / "no", "--trips", city.trips, "--out", city.out) == 2
    assert "no is no file; --roads takes one" in capsys.readouterr().err
    (tmp_path / "roads.shp").write_bytes(b"")
    assert command("--roads", tmp_path / "roads.shp", "--trips", city.trips, "--out", city.out) == 2
    assert "convert other formats: ogr2ogr" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_needed(
    city: ConvertConfig, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "osmium", None)
    (tmp_path / "city.osm.pbf").write_bytes(b"")
    assert command("--roads", tmp_path / "city.osm.pbf", "--trips", city.trips, "--out", city.out) == 2
    assert "needs the extra [convert]" in capsys.readouterr().err
