"""Reading raw files: what is understood, and what every complaint names."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_city import TINY, write_tiny_city

from shared.errors import DataError
from student_trainer.prepare import csv_faults
from student_trainer.prepare import raw as raw_files
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.raw import read_roads
from student_trainer.prepare.run import run

TIMES = '"2020-01-01T00:00:00Z,2020-01-01T00:00:01Z"'


def geo(*rows: str) -> str:
    return "geo_id,coordinates,highway,length\n" + "".join(f"{row}\n" for row in rows)


def trips(rid_list: str, time_list: str) -> str:
    return (
        f'traj_id,rid_list,time_list\n0,"0,1","2020-01-01T00:00:00Z,2020-01-01T00:00:01Z"\n1,{rid_list},{time_list}\n'
    )


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "missing column": ("roadmap.geo", "geo_id,coordinates,highway\n", "has no column length"),
    "no roads": ("roadmap.geo", geo(), "holds no road"),
    "blank in the header": (
        "roadmap.geo",
        "geo_id, coordinates,highway,length\n",
        "line 1: has no column coordinates; it has 'geo_id', ' coordinates', 'highway', 'length'. "
        "Rename ' coordinates' to 'coordinates'",
    ),
    "capitals in the header": ("train.csv", "Rid_List,time_list\n", "Rename 'Rid_List' to 'rid_list'"),
    "semicolons": ("roadmap.rel", "origin_id;destination_id\n0;1\n", "separated by ';'; write it with commas"),
    "another name": ("train.csv", "rid_lists,time_list\n", "Is 'rid_lists' meant for 'rid_list'? Then rename it"),
    "carriage returns": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",a,1').replace("\n", "\r"), "tr '\\r' '\\n' <"),
    "carriage returns in trips": ("val.csv", "rid_list,time_list\r0,2020-01-01T00:00:00Z\r", "carriage returns alone"),
    "latin-1": (
        "roadmap.geo",
        geo('0,"[[1, 2], [3, 4]]",a,1', '1,"[[1, 2], [3, 4]]",all\xe9e,1').encode("latin-1"),
        "row 1 (line 3): byte 0xe9 is not UTF-8 (near '4]]\",all\xe9e,1', read as Latin-1)",
    ),
    "latin-1 in trips": (
        "test.csv",
        b'traj_id,rid_list,time_list\nx,"0,1","2020-01-01T00:00:00Z,2020-01-01T00:00:01Z"\nall\xe9e,0,x\n',
        "row 1 (line 3): byte 0xe9 is not UTF-8",
    ),
    "cut within quotes": (
        "train.csv",
        trips('"0,1"', TIMES)[:-6],
        "row 1 (line 3): a quote is opened and never",
    ),
    "cut roads": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",a,1')[:-10], "row 0 (line 2): a quote is opened and never"),
    "gzip": (
        "train.csv",
        gzip.compress(b"rid_list,time_list\n"),
        "is compressed with gzip; unpack it: mv ",
    ),
    "zip": ("roadmap.geo", b"PK\x03\x04rest", "a ZIP archive or a spreadsheet"),
    "UTF-16": ("roadmap.rel", "origin_id,destination_id\n".encode("utf-16"), "in UTF-16; convert it: iconv"),
    "list of anything": ("roadmap.geo", geo("0,\"[[1, 2], [3, 4]]\",['a' 3],1"), "looks like a list of road classes"),
    "axes beyond the poles": ("roadmap.geo", geo('0,"[[41, -122], [41, -122]]",a,1'), "are they exchanged?"),
    "empty file": ("roadmap.geo", "", "cannot be read as CSV"),
    "gap in geo_id": ("roadmap.geo", geo('1,"[[1, 2], [3, 4]]",a,1'), "row 0 (line 2), column geo_id: expected 0"),
    "geo_id no integer": ("roadmap.geo", geo('x,"[[1, 2], [3, 4]]",a,1'), "column geo_id: expected an integer"),
    "bad JSON": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]",a,1'), "row 0 (line 2), column coordinates: not JSON"),
    "code": ("roadmap.geo", geo("0,__import__('os').getcwd(),a,1"), "column coordinates: not JSON"),
    "one point": ("roadmap.geo", geo('0,"[[1, 2]]",a,1'), "column coordinates: fewer than 2 points"),
    "NaN coordinate": ("roadmap.geo", geo('0,"[[1, NaN], [3, 4]]",a,1'), "column coordinates: NaN"),
    "text coordinate": ("roadmap.geo", geo('0,"[[1, ""2""], [3, 4]]",a,1'), "column coordinates"),
    "lat and lng swapped": ("roadmap.geo", geo('0,"[[37, -122], [37, -122]]",a,1'), "not longitude and latitude"),
    "NaN length": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",a,nan'), "column length: expected metres, not 'nan'"),
    "no length": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",a,'), "column length: expected metres"),
    "negative length": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",a,-1'), "column length"),
    "no highway": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",,1'), "column highway: empty"),
    "odd highway": ("roadmap.geo", geo('0,"[[1, 2], [3, 4]]",[a,1'), "column highway: '[a' looks like a list"),
    "unknown successor": (
        "roadmap.rel",
        "origin_id,destination_id\n0,1\n0,5\n",
        "row 1 (line 3), column dest",
    ),
    "negative origin": ("roadmap.rel", "origin_id,destination_id\n-1,1\n", "unknown road -1"),
    "road is no integer": (
        "train.csv",
        trips('"0,1.5"', '"a,b"'),
        "row 1 (line 3), column rid_list: expected",
    ),
    "unknown road": (
        "val.csv",
        trips('"0,5"', TIMES),
        "has roads 0..4, not '5'",
    ),
    "bad time": (
        "test.csv",
        trips('"0,1"', '"2020-01-01T00:00:00Z,2020-01-32T00:00:01Z"'),
        "column time_list: expected",
    ),
    "no times": ("test.csv", trips('"0,1"', ""), "column time_list: 0 times for 2 roads"),
    "fewer times": ("test.csv", trips('"0,1"', "2020-01-01T00:00:00Z"), "1 time for 2 roads"),
    "no trips": ("train.csv", "rid_list,time_list\n", "train.csv has no usable trip: it has no rows"),
    "nothing usable": (
        "val.csv",
        "rid_list,time_list\n0,2020-01-01T00:00:00Z\n",
        "val.csv has no usable trip: of 1 trip dropped: 1 too_short",
    ),
    "several reasons": (
        "val.csv",
        f'rid_list,time_list\n0,2020-01-01T00:00:00Z\n"2,0",{TIMES}\n"2,0",{TIMES}\n',
        "val.csv has no usable trip: of 3 trips dropped: 1 too_short, 2 off_network",
    ),
    "no pairs": ("roadmap.rel", "origin_id,destination_id\n", "holds no pair of roads"),
    "partition too short": ("road_network_partition", "0\n1\n", "has 2 lines for 5 roads"),
    "partition of one line": ("road_network_partition", "0\n", "has 1 line for 5 roads"),
    "partition compressed": ("road_network_partition", gzip.compress(b"0\n"), "compressed with gzip; unpack it: mv"),
    "partition no number": ("road_network_partition", "0\n1\nx\n0\n0\n", "line 3: expected a zone number"),
    "partition too high": ("road_network_partition", "0\n1\n9\n0\n0\n", "line 3: zone 9"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name_row_and_column(tmp_path: Path, case: str) -> None:
    name, text, message = BROKEN[case]
    raw = write_tiny_city(tmp_path / "raw")
    (raw / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", TINY)
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    raw = write_tiny_city(tmp_path / "raw")
    (raw / name).unlink()
    with pytest.raises(DataError, match=f"raw has no {name}; a directory in HOSER format has"):
        run(PrepareConfig(raw=raw, out=tmp_path / "store"))


def zipped(path: Path, text: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", text)


PACKED: dict[str, Callable[[Path, bytes], object]] = {
    ".gz": lambda path, text: path.write_bytes(gzip.compress(text)),
    ".bz2": lambda path, text: path.write_bytes(bz2.compress(text)),
    ".xz": lambda path, text: path.write_bytes(lzma.compress(text)),
    ".zip": zipped,
    ".zst": lambda path, text: path.write_bytes(b"\x28\xb5\x2f\xfd"),  # is not read
}


def run_as_said(message: str, at: str, program: str) -> bool:
    """Runs the command of a message, if its program is there."""
    bash = shutil.which("bash")
    if bash is None or shutil.which(program) is None:
        return False
    subprocess.run([bash, "-c", message.partition(at)[2]], check=True)
    return True


@pytest.mark.parametrize("ending", PACKED)
def test_files_that_lie_there_compressed_are_named_with_the_command(tmp_path: Path, ending: str) -> None:
    (folder := tmp_path / "my city").mkdir()
    raw = write_tiny_city(folder / "raw")
    PACKED[ending](raw / f"train.csv{ending}", (raw / "train.csv").read_bytes())
    (raw / "train.csv").unlink()
    config = PrepareConfig(raw=raw, out=tmp_path / "store")
    with pytest.raises(DataError) as caught:
        run(config)
    assert "raw has no train.csv; a directory in HOSER format has roadmap.geo, roadmap.rel, " in str(caught.value)
    (packer,) = (packer for packer in (*csv_faults.PACKERS, csv_faults.ZIP) if packer.ending == ending)
    assert f"unpack them: {packer.unpack} '{raw / 'train.csv'}{ending}' > '{raw / 'train.csv'}'" in str(caught.value)
    if ending != ".zst" and run_as_said(str(caught.value), "unpack them: ", packer.unpack.split()[0]):
        assert (raw / "train.csv").read_text() == TINY["train.csv"]
        run(config)


def test_all_compressed_files_are_unpacked_by_one_command(tmp_path: Path) -> None:
    """The partition, too, which need not be there: without it other zones were made."""
    raw = write_tiny_city(tmp_path / "raw", road_network_partition="0\n1\n0\n1\n0\n")
    names = [path.name for path in raw.iterdir()]
    for path in list(raw.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(DataError) as caught:
        run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    assert run_as_said(str(caught.value), "unpack them: ", "gunzip")
    assert all((raw / name).is_file() for name in names)
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_a_compressed_file_is_unpacked_as_said(tmp_path: Path, name: str) -> None:
    """Whether its name says that it is compressed or not."""
    (tmp_path / name).write_bytes(gzip.compress(TINY["train.csv"].encode()))
    with pytest.raises(DataError) as caught:
        csv_faults.check_kind(tmp_path / name)
    assert run_as_said(str(caught.value), "unpack it: ", "gunzip")
    assert (tmp_path / "train.csv").read_text() == TINY["train.csv"]


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a directory"):
        run(PrepareConfig(raw=tmp_path / "nowhere", out=tmp_path / "store"))


@pytest.mark.parametrize(
    ("highway", "expected"),
    [
        ("trunk", "trunk"),
        ("\"['trunk', 'primary']\"", "trunk"),
        ("\"['unclassified', 'primary']\"", "primary"),
        ("['unclassified']", "unclassified"),
        ("3", "3"),
        ("3.0", "3"),
        ("['trunk' 'primary']", "trunk"),
        ("['unclassified' 'primary']", "primary"),
        ("\"['trunk'\n 'primary']\"", "trunk"),
        ("\"('trunk', 'primary')\"", "trunk"),
    ],
)
def test_road_class_of_a_list(tmp_path: Path, highway: str, expected: str) -> None:
    path = tmp_path / "roadmap.geo"
    path.write_text(geo(f'0,"[[1, 2], [3, 4]]",{highway},1'))
    assert read_roads(path).highway == [expected]


def test_points_are_the_same_by_value_whatever_their_decimals(tmp_path: Path) -> None:
    path = tmp_path / "roadmap.geo"
    path.write_text(
        geo(
            '0,"[[1.0, 2], [3, 4.1234567]]",a,1',
            '1,"[[1.00, 2], [3,4.123457]]",a,1',
            '2,"[[3, 4.1234560], [1, 2]]",a,1',
        )
    )
    roads = read_roads(path)
    assert roads.start_point[0] == roads.start_point[1] == roads.end_point[2]
    assert roads.end_point[0] == roads.end_point[1] == roads.start_point[2]  # through the first: seven decimals
    assert roads.end_point[0] != roads.start_point[0]
    assert roads.merged_points == 2
    np.testing.assert_array_equal(roads.vertices[0], [2.0, 1.0])


def test_lists_may_have_spaces_and_any_length(tmp_path: Path) -> None:
    path = tmp_path / "trips.csv"
    time = "2020-01-01T00:00:0{}Z"
    path.write_text(
        f'time_list,extra,rid_list\n"{time.format(0)}, {time.format(7)}",[1],"3, 4"\n,,\n{time.format(1)},{{}},2\n'
    )
    file = raw_files.open_trips(path, 5)
    (text,) = raw_files.read_trip_blocks(file)
    raw = raw_files.parse_trips(file, text)
    np.testing.assert_array_equal(raw.offsets, [0, 2, 2, 3])
    np.testing.assert_array_equal(raw.roads, [3, 4, 2])
    np.testing.assert_array_equal(raw.times - raw.times[0], [0, 7, 1])
    assert raw.times[0] == 1577836800


def test_windows_line_ends_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    raw = write_tiny_city(tmp_path / "raw")
    for path in raw.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))
