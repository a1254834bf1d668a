"""The partitioner in a process of its own."""

from __future__ import annotations

import os

import numpy as np
import pytest

from shared.errors import DataError
from student_trainer.prepare.partition import Partitioning, partition

SIDE = 12
RIGHT = [(a, a + 1) for a in range(SIDE**2) if (a + 1) % SIDE]
DOWN = [(a, a + SIDE) for a in range(SIDE**2 - SIDE)]
ORIGIN, DESTINATION = np.array(RIGHT + DOWN, np.int64).T
LATTICE = (ORIGIN, DESTINATION, SIDE**2)


def test_the_process_gives_what_the_function_gives() -> None:
    expected = partition(*LATTICE, count=4, seed=3)
    with Partitioning(*LATTICE, count=4, seed=3) as partitioning:
        np.testing.assert_array_equal(partitioning.result(), expected)
    assert np.bincount(expected).max() <= 1.03 * SIDE**2 / 4 + 1
    crossing = sum(expected[a] != expected[b] for a, b in RIGHT + DOWN)
    assert crossing <= 2.5 * SIDE, "two straight cuts would be 2 * SIDE"


def test_one_zone_needs_no_partitioner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("kahip.kaffpa")
    assert not partition(*LATTICE, count=1, seed=0).any()


def test_the_process_ends_with_the_context() -> None:
    with pytest.raises(KeyboardInterrupt), Partitioning(*LATTICE, count=4, seed=0) as partitioning:
        process = partitioning._process
        raise KeyboardInterrupt
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_process_that_fails_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        Partitioning(*LATTICE, count=-1, seed=2**40) as partitioning,
        pytest.raises(DataError, match=r"the partitioner ended with .*road_network_partition"),
    ):
        partitioning.result()
    capfd.readouterr()
