"""Trips of val and test that are in train, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_city import TINY, write_tiny_city

from shared import ragged
from shared.store import Store, Trips
from student_trainer.prepare import leaks, splits
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import run

Trip = list[tuple[int, int]]
"""Roads and times."""
few = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), min_size=1, max_size=3)
"""Trips of which many are equal, or differ in one place."""
any_trip = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(-(2**62), 2**62)), min_size=1, max_size=4)
trips = st.lists(few | any_trip, max_size=12)


def flat(found: list[Trip]) -> Trips:
    roads = np.array([road for trip in found for road, _ in trip], np.int32)
    times = np.array([time for trip in found for _, time in trip], np.int64)
    return Trips(roads, times, ragged.offsets(np.array([len(trip) for trip in found], int)), np.arange(len(found)))


def told(train: list[Trip], **others: list[Trip]) -> list[str]:
    hashes = {split: leaks.hashes(flat(found)) for split, found in {"train": train, **others}.items()}
    return leaks.findings(hashes, {split: np.arange(len(found)) for split, found in hashes.items()})


@given(trips, trips)
def test_what_is_told_is_what_a_search_finds(train: list[Trip], val: list[Trip]) -> None:
    found = [row for row, trip in enumerate(val) if any(trip == other for other in train)]
    sentences = told(train, val=val)
    assert len(sentences) == bool(found)
    if found:
        share = f"{100 * len(found) / len(val):.3g}"
        said = f"val.csv: {share} % of val trips are in train, too ({len(found)} of {len(val)}; first: row {found[0]})"
        assert sentences[0].startswith(said)


@given(trips)
def test_hashes_are_equal_where_trips_are(found: list[Trip]) -> None:
    hashes = leaks.hashes(flat(found))
    assert (hashes.dtype, hashes.shape) == (np.dtype(np.uint64), (len(found),))
    for trip, value in zip(found, hashes, strict=True):
        assert [other == trip for other in found] == (hashes == value).tolist()


def test_hashes_spread_over_all_bits() -> None:
    """Trips on the same roads a second apart, and roads exchanged: as often equal in some bits as chance has it."""
    trips: list[Trip] = [[(road, time), (9 - road, time + 5)] for road in range(10) for time in range(2000)]
    hashes = leaks.hashes(flat(trips))
    assert len(np.unique(hashes)) == len(trips)
    for shift in (0, 16, 32, 48):
        counts = np.bincount((hashes >> np.uint64(shift) & np.uint64(255)).astype(int), minlength=256)
        expected = len(trips) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 400  # chi-squared, 255 degrees of freedom: p 10^-8


def test_a_val_that_is_train_is_found_by_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are those of the file, with what was dropped, whatever blocks trips are read in."""
    monkeypatch.setattr(splits, "BLOCK_ROADS", 1)
    lines = TINY["train.csv"].splitlines(keepends=True)
    mixed = [lines[0], TINY["val.csv"].splitlines(keepends=True)[1], '5,0,"2020-01-04T00:00:00Z"\n', lines[2]]
    raw = write_tiny_city(tmp_path / "raw", val__csv=TINY["train.csv"], test__csv="".join(mixed))
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    val, test = Store(tmp_path / "store").manifest["findings"]
    assert val.startswith("val.csv: 100 % of val trips are in train, too (2 of 2; first: row 0), on the same roads at")
    assert test.startswith("test.csv: 50 % of test trips are in train, too (1 of 2; first: row 2), on the same roads")
    assert f"warning: {val}\nwarning: {test}" in capsys.readouterr().out


def test_the_same_roads_at_another_time_are_another_trip(tmp_path: Path) -> None:
    later = TINY["train.csv"].replace("2020-01-0", "2020-02-0")
    raw = write_tiny_city(tmp_path / "raw", val__csv=later, test__csv=later)
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    assert Store(tmp_path / "store").manifest["findings"] == []
