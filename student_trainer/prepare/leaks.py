"""Trips that are told to the student and asked of it: those of val and test that are in train, too.

Trips are compared by 64-bit hashes of their roads and times. Of n trips against m, other trips are taken for equal with
a probability of about n m / 2^64: 10^-10 for 35,000 against 35,000. Trips that someone made to collide are not meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Int64, UInt64
from shared.mixing import mix
from shared.store import SPLITS, Trips
from student_trainer.prepare import splits
from student_trainer.prepare.workers import Workers


def hashes(trips: Trips) -> UInt64:
    """A number for each trip's roads and times, uint64 [n]: equal for equal trips, else as good as drawn by chance.

    It is the sum, modulo 2^64, of what place, road and time of each of its roads are mixed to.
    """
    if not len(trips):
        return np.zeros(0, np.uint64)
    value = mix(ragged.positions(trips.lengths).astype(np.uint64))
    for part in (trips.roads, trips.times):
        value = mix(value ^ part.astype(np.int64).view(np.uint64))
    return np.add.reduceat(value, trips.offsets[:-1])


def findings_of_store(folder: Path, workers: Workers) -> list[str]:
    """The sentences about the splits of a store, block by block at the same time."""
    hashed = {split: np.concatenate(list(workers.in_order(hashes, splits.read(folder / split)))) for split in SPLITS}
    rows = {split: np.load(folder / split / "source_rows.npy", mmap_mode="r") for split in SPLITS}
    return findings(hashed, rows)


def findings(trips: Mapping[str, UInt64], rows: Mapping[str, npt.NDArray[np.integer]]) -> list[str]:
    """A sentence about each split of which trips are in train.

    Args:
        trips: uint64 [n], the hashes of the trips of each split; train is one of them.
        rows: integers [n], the row of each trip in its file.
    """
    return [
        sentence
        for split, hashed in trips.items()
        if split != "train"
        for sentence in _of_split(split, hashed, rows[split], trips["train"])
    ]


def _of_split(split: str, trips: UInt64, rows: npt.NDArray[np.integer], train: UInt64) -> list[str]:
    found: Int64 = np.flatnonzero(np.isin(trips, train))
    if not len(found):
        return []
    return [
        f"{split}.csv: {100 * len(found) / len(trips):.3g} % of {split} trips are in train, too ({len(found)} of "
        f"{len(trips)}; first: row {rows[found[0]]}), on the same roads at the same times. A student has seen their "
        "answers, so metrics on them are too good: remove them from one of the two files"
    ]
