"""Usable trips and their steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_city import write_tiny_city

from shared import ragged
from shared.errors import DataError
from shared.store import Store
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.network import Successors
from student_trainer.prepare.raw import RawTrips
from student_trainer.prepare.run import run
from student_trainer.prepare.trips import step_index, steps_of, usable

SUCCESSORS = Successors.from_pairs(np.array([0, 0, 0, 1, 3]), np.array([4, 1, 3, 2, 0]), 5)


def raw_trips(*trips: tuple[list[int], list[int]]) -> RawTrips:
    roads = np.array([road for trip, _ in trips for road in trip], np.int32)
    times = np.array([time for _, trip in trips for time in trip], np.int64)
    return RawTrips(Path("some.csv"), roads, times, ragged.offsets(np.array([len(trip) for trip, _ in trips])))


MIXED = raw_trips(
    ([], []),
    ([0, 1, 2], [0, 5, 5]),
    ([2], [0]),
    ([0, 2], [0, 1]),  # off the network
    ([3, 0, 4], [0, 9, 8]),  # back in time
    ([0, 0], [5, 4]),  # both: counted once
    ([3, 0], [0, 1]),
)


def test_unusable_trips_are_dropped_and_counted() -> None:
    trips, dropped = usable(MIXED, SUCCESSORS, strict=False)
    assert dropped == {"too_short": 2, "off_network": 2, "time_backwards": 1}
    np.testing.assert_array_equal(trips.source_rows, [1, 6])
    np.testing.assert_array_equal(trips.roads, [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(trips.times, [0, 5, 5, 0, 1])
    np.testing.assert_array_equal(trips.offsets, [0, 3, 5])


@pytest.mark.parametrize(
    ("trip", "message"),
    [
        (([0, 1, 3], [0, 1, 2]), r"row 1 \(line 3\), column rid_list: road 3 at place 2 is not a successor of road 1"),
        (([0, 1, 2], [0, 1, 0]), r"row 1 \(line 3\), column time_list: time goes backwards after place 1"),
    ],
)
def test_strict_refuses_by_row(trip: tuple[list[int], list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        usable(raw_trips(([0, 1], [0, 1]), trip), SUCCESSORS, strict=True)


def test_strict_still_skips_trips_without_a_step() -> None:
    _, dropped = usable(raw_trips(([2], [0]), ([0, 1], [0, 1])), SUCCESSORS, strict=True)
    assert dropped["too_short"] == 1


def test_steps_by_definition() -> None:
    trips, _ = usable(raw_trips(([3, 0, 1, 2], [0, 1, 2, 3]), ([0, 4], [0, 1])), SUCCESSORS, strict=True)
    np.testing.assert_array_equal(step_index(trips.offsets), [0, 1, 2, 4])
    steps = steps_of(trips, SUCCESSORS)
    np.testing.assert_array_equal(steps.road, [3, 0, 1, 0])
    np.testing.assert_array_equal(steps.next_road, [0, 1, 2, 4])
    np.testing.assert_array_equal(steps.destination, [2, 2, 2, 4])
    np.testing.assert_array_equal(SUCCESSORS.roads[steps.transition], steps.next_road)
    np.testing.assert_array_equal(steps.previous_transition, [-1, steps.transition[0], steps.transition[1], -1])


def test_dropped_trips_are_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    second = '1,"0,2","2020-01-01T00:00:00Z,2020-01-01T00:00:01Z"\n'
    raw = write_tiny_city(tmp_path / "raw")
    with open(raw / "test.csv", "a") as file:
        file.write(second)
    run(PrepareConfig(raw=raw, out=tmp_path / "store"))
    assert Store(tmp_path / "store").manifest["dropped"]["test"]["off_network"] == 1
    printed = capsys.readouterr().out
    assert "test      1 trip, 3 steps, longest 4 roads; dropped: 1 off_network\n" in printed
    assert "val       1 trip, 1 step, longest 2 roads\n" in printed
    assert f"{raw / 'test.csv'}: 1 of 2 trips dropped: 1 off_network" in caplog.messages
    with pytest.raises(DataError, match=r"test\.csv, row 1 "):
        run(PrepareConfig(raw=raw, out=tmp_path / "other", strict=True))
