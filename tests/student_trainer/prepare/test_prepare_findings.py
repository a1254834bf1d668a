"""What `prepare` notices in raw files that can be read: said with counts, kept in the store, printed each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_city import TINY, write_tiny_city

from shared import ragged
from shared.errors import ConfigError
from shared.store import Store, Trips
from student_trainer.data.geometry import haversine_m
from student_trainer.prepare import csv_faults, plausible, points, road_classes
from student_trainer.prepare.clock import Clock
from student_trainer.prepare.config import GridConfig, PrepareConfig
from student_trainer.prepare.network import Successors, road_graph
from student_trainer.prepare.raw import Roads, read_roads
from student_trainer.prepare.run import run

SIDE = 6


def lattice(south: float = 41.15, west: float = -8.61) -> tuple[list[tuple[tuple[float, float], ...]], list[str]]:
    """Roads of a lattice in both directions, (latitude, longitude) of both ends, and `roadmap.rel`."""
    nodes = [(south + 0.0013 * row, west + 0.0019 * col) for row in range(SIDE) for col in range(SIDE)]
    links = [(n, n + 1) for n in range(SIDE**2) if n % SIDE < SIDE - 1] + [(n, n + SIDE) for n in range(SIDE**2 - SIDE)]
    ways = [way for a, b in links for way in ((a, b), (b, a))]
    pairs = [f"{i},{j}" for i, (_, end) in enumerate(ways) for j, (start, _) in enumerate(ways) if end == start]
    return [(nodes[a], nodes[b]) for a, b in ways], pairs


def write_lattice(
    raw: Path,
    point: Callable[[int, float, float], str] = lambda road, lat, lng: f"[{lng:.6f}, {lat:.6f}]",
    metres: float = 1.0,
    highway: Callable[[int], str] = lambda road: "residential",
) -> Path:
    """A lattice whose points, unit of length and classes are written as told; trips are the tiny city's."""
    roads, pairs = lattice()
    rows = ["geo_id,coordinates,highway,length"]
    for road, ((lat, lng), (lat2, lng2)) in enumerate(roads):
        length = metres * float(haversine_m(lat, lng, lat2, lng2))
        line = f"[{point(road, lat, lng)}, {point(road, lat2, lng2)}]"
        rows.append(f'{road},"{line}",{highway(road)},{length:.6f}')
    raw.mkdir()
    (raw / "roadmap.geo").write_text("\n".join(rows) + "\n")
    (raw / "roadmap.rel").write_text("\n".join(["origin_id,destination_id", *pairs]) + "\n")
    first = pairs[0]
    for day, split in enumerate(("train", "val", "test"), start=1):
        times = f"2020-01-0{day}T10:00:00Z,2020-01-0{day}T10:00:09Z"
        (raw / f"{split}.csv").write_text(f'rid_list,time_list\n"{first}","{times}"\n')
    return raw


def found(raw: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The findings of a store, after both ways to read them agreed."""
    run(PrepareConfig(raw=raw, out=store))
    sentences: list[str] = Store(store).manifest["findings"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert printed == [f"warning: {sentence}" for sentence in sentences]
    run(PrepareConfig(raw=raw, out=store))  # up to date, and still said
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")] == printed
    return sentences


def test_an_ordinary_network_gives_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert found(write_lattice(tmp_path / "raw"), tmp_path / "store", capsys) == []
    assert found(write_tiny_city(tmp_path / "tiny"), tmp_path / "tiny-store", capsys) == []


def test_points_with_other_decimals_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every second road has six decimals, the others seven: the road graph is that of one way of writing."""

    def shifted(road: int, lat: float, lng: float) -> str:
        return f"[{lng + 3e-7:.{6 + road % 2}f}, {lat + 4e-7:.{6 + road % 2}f}]"

    plain = read_roads(write_lattice(tmp_path / "plain") / "roadmap.geo")
    raw = write_lattice(tmp_path / "raw", shifted)
    mixed = read_roads(raw / "roadmap.geo")
    assert road_graph(plain).shape == road_graph(mixed).shape
    np.testing.assert_array_equal(road_graph(plain), road_graph(mixed))
    (sentence,) = found(raw, tmp_path / "store", capsys)
    assert sentence.startswith(
        f"roadmap.geo: {mixed.merged_points} end points of roads lie within 0.1 m of another one"
    )
    assert 0 < mixed.merged_points <= SIDE**2


@pytest.mark.parametrize(("apart", "same"), [(0.0, True), (9e-7, True), (1e-6, False), (1e-5, False)])
def test_points_are_the_same_below_a_step_of_the_sixth_decimal(apart: float, same: bool) -> None:
    number, merged = points.number(np.array([[41.0, -8.0], [41.0, -8.0 + apart], [42.0, -8.0]]))
    assert (number[0] == number[1]) == same
    assert number[2] not in number[:2]
    assert merged == (same and apart > 0)


def test_pairs_that_do_not_meet_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five decimals in every second road: beyond what may be the same point, so `.rel` shows it."""
    raw = write_lattice(tmp_path / "raw", lambda road, lat, lng: f"[{lng + 3e-6:.{5 + road % 2}f}, {lat:.6f}]")
    (sentence,) = found(raw, tmp_path / "store", capsys)
    total = len(lattice()[1])
    count = int(sentence.partition(": ")[2].partition(" of ")[0])
    assert f"{count} of {total} pairs do not meet" in sentence and 0 < count < total
    assert "write their common points alike" in sentence


def test_swapped_axes_are_seen_by_the_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Porto's 41.15, -8.61 is a valid place either way round."""
    raw = write_lattice(tmp_path / "raw", lambda road, lat, lng: f"[{lat:.6f}, {lng:.6f}]")
    (sentence,) = found(raw, tmp_path / "store", capsys)
    assert "lengths fit the lines much better if latitude and longitude are exchanged" in sentence
    assert "begins at latitude -8.61, longitude 41.15" in sentence


@pytest.mark.parametrize(("metres", "unit"), [(1e-3, "kilometres"), (1 / 1609.344, "miles"), (3.28084, "feet")])
def test_units_of_lengths_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metres: float, unit: str
) -> None:
    (sentence,) = found(write_lattice(tmp_path / "raw", metres=metres), tmp_path / "store", capsys)
    assert f"the median of {len(lattice()[0])} roads is {metres:.3}"[:-1] in sentence
    assert f"They look like {unit}: convert them to metres" in sentence


def test_lines_are_measured_on_the_sphere() -> None:
    vertices = np.array([[50.0, 10.0], [50.0, 10.001], [50.001, 10.001], [50.0, 10.0], [50.002, 10.0]])
    line = plausible.line_lengths(
        Roads(vertices, ragged.offsets(np.array([3, 2])), np.array([0, 0]), np.array([1, 2]), np.ones(2), ["a", "b"])
    )
    one, two, three = haversine_m(
        [50.0, 50.0, 50.0], [10.0, 10.001, 10.0], [50.0, 50.001, 50.002], [10.001, 10.001, 10]
    )
    np.testing.assert_allclose(line, [one + two, three], rtol=1e-12)


def test_numbers_of_classes_are_compared_by_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_lattice(tmp_path / "raw", highway=lambda road: ["3", "3.0", "10.0", "3"][road % 4])
    (sentence,) = found(raw, tmp_path / "store", capsys)
    assert Store(tmp_path / "store").manifest["highway_classes"] == ["3", "10"]
    assert sentence.startswith("roadmap.geo, column highway: 30 roads write the number of their class otherwise")
    assert "('3', '3.0')" in sentence


def test_classes_that_differ_in_capitals_are_named() -> None:
    texts = ["Trunk", "trunk", "primary"]
    (sentence,) = road_classes.findings(texts, [road_classes.class_of(text) for text in texts])
    assert "stay apart: Trunk, trunk" in sentence


def with_road_at_zero(raw: Path) -> Path:
    """The lattice and a road whose coordinates got lost."""
    write_lattice(raw)
    with open(raw / "roadmap.geo", "a") as file:
        file.write(f'{len(lattice()[0])},"[[0.0, 0.0], [0.0, 0.0]]",residential,10\n')
    return raw


def test_a_road_far_away_is_named_and_the_table_leaves_out_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A size that the user did not choose is no reason to refuse the one that was."""
    raw = with_road_at_zero(tmp_path / "raw")
    number = len(lattice()[0])
    run(PrepareConfig(raw=raw, out=tmp_path / "store", grid=GridConfig(cell_size=0.002)))
    manifest = Store(tmp_path / "store").manifest
    assert [line["cell_size"] for line in manifest["collisions"]] == [0.002, 0.001, 0.0005]
    (sentence,) = manifest["findings"]
    assert f"1 of {number + 1} roads lies far from all others: road {number} at latitude 0, longitude 0 (" in sentence
    assert "Mend or remove it, or set grid.bounds" in sentence
    assert sentence in capsys.readouterr().out


def test_a_grid_that_is_too_large_names_the_road_that_makes_it_so(tmp_path: Path) -> None:
    raw = with_road_at_zero(tmp_path / "raw")
    config = PrepareConfig(raw=raw, out=tmp_path / "store", grid=GridConfig(cell_size=0.0001))
    with pytest.raises(ConfigError, match=rf"far from all other roads \(road {len(lattice()[0])} at latitude 0"):
        run(config)
    south, west, north, east = 41.14, -8.62, 41.16, -8.59
    config = config.model_copy(update={"grid": GridConfig(cell_size=0.0001, bounds=(south, west, north, east))})
    run(config)  # as advised
    assert Store(tmp_path / "store").manifest["statistics"]["roads_outside_grid"] == 1


def trips_of(departures: list[int], steps: list[list[int]]) -> Trips:
    times = [np.cumsum([start, *taken]) for start, taken in zip(departures, steps, strict=True)]
    flat = np.concatenate(times)
    offsets = ragged.offsets(np.array([len(trip) for trip in times]))
    return Trips(np.zeros(len(flat), np.int32), flat, offsets, np.arange(len(times)))


NOON = 43_200


@pytest.mark.parametrize(
    ("departures", "steps", "expected"),
    [
        ([86_400 * day + NOON for day in range(40)], [[5 + day, 9] for day in range(40)], ["departures"]),
        ([977 * day for day in range(40)], [[1, 1, 1]] * 40, ["durations"]),
        ([977 * day for day in range(40)], [[day, 600 - day] for day in range(40)], ["durations"]),
        ([NOON] * 40, [[0, 0]] * 40, ["departures", "durations"]),
        ([977 * day for day in range(40)], [[5 + day, 9 * day] for day in range(40)], []),
        ([NOON] * 19, [[0, 0]] * 19, []),  # too few to say
        ([NOON] * 35 + [7] * 5, [[n, 2 * n] for n in range(40)], []),  # less than nine in ten
    ],
    ids=["noon", "a second a step", "ten minutes a trip", "both", "real", "few", "most"],
)
def test_placeholders_are_told_from_times(departures: list[int], steps: list[list[int]], expected: list[str]) -> None:
    trips = trips_of(departures, steps)
    clock = Clock()
    for part in np.array_split(np.arange(len(trips)), 3):
        clock.add(Clock.of(trips.take(part)))
    facts = clock.facts("test")
    assert facts["placeholders"] == expected
    assert len(facts["findings"]) == len(expected)


def test_trips_at_noon_are_found_by_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f'"0,1","2020-01-{day:02}T12:00:00Z,2020-01-{day:02}T12:00:{day:02}Z"\n' for day in range(1, 31))
    raw = write_tiny_city(tmp_path / "raw", test__csv=f"rid_list,time_list\n{rows}")
    (sentence,) = found(raw, tmp_path / "store", capsys)
    assert sentence.startswith("test.csv: 100.0 % of 30 trips begin at 12:00:00: a placeholder rather than a time")
    splits = Store(tmp_path / "store").manifest["splits"]
    assert {name: facts["placeholders"] for name, facts in splits.items()} == {
        "train": [], "val": [], "test": ["departures"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["roadmap.geo", "roadmap.rel", "train.csv"])
def test_files_without_a_last_line_end_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A cut row may still read as one: 12,57 as 12,5."""
    raw = write_tiny_city(tmp_path / "raw")
    (raw / name).write_text(TINY[name].removesuffix("\n"))
    assert csv_faults.ends_within_row(raw / name)
    (sentence,) = found(raw, tmp_path / "store", capsys)
    assert sentence.startswith(f"{name} does not end with a line end")


def test_findings_are_no_part_of_the_content(tmp_path: Path) -> None:
    """The fingerprint, by which runs know their store, is that of a store from before findings were kept."""
    raw = write_tiny_city(tmp_path / "raw")
    run(PrepareConfig(raw=raw, out=tmp_path / "plain"))
    (raw / "roadmap.rel").write_text(TINY["roadmap.rel"].removesuffix("\n"))
    run(PrepareConfig(raw=raw, out=tmp_path / "said"))
    plain, said = Store(tmp_path / "plain"), Store(tmp_path / "said")
    assert plain.manifest["findings"] != said.manifest["findings"]
    assert plain.fingerprint == said.fingerprint
    json.dumps(said.manifest, allow_nan=False)


def test_successors_of_a_lattice_meet() -> None:
    """The lattice of these tests is sound, or they would show nothing."""
    roads, pairs = lattice()
    origin, destination = np.array([pair.split(",") for pair in pairs], np.int64).T
    assert Successors.from_pairs(origin, destination, len(roads)).degree.min() >= 2
