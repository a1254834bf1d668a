"""Zones: a partition of the roads, and the flow of the training trips between them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from shared.arrays import Float32, Int64
from shared.errors import DataError
from student_trainer.prepare import csv_faults
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.network import Successors
from student_trainer.prepare.words import counted

log = logging.getLogger(__name__)

PARTITION_FILE = "road_network_partition"
MATRIX_FILE = "zone_trans_mat.npy"


def read_partition(path: Path, num_roads: int) -> Int64:
    """Reads `road_network_partition`: one zone a line, one line a road; raises `DataError`."""
    try:
        csv_faults.check_unpacked(path)
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for number, text in enumerate(lines, start=1):
        if not text.isdecimal():
            raise DataError(f"{path}, line {number}: expected a zone number, not {text!r}")
    if len(lines) != num_roads:
        raise DataError(
            f"{path} has {counted(len(lines), 'line')} for {counted(num_roads, 'road')} in roadmap.geo; it must have "
            "one a road"
        )
    zones = np.array(lines, np.int64)
    if zones.max() >= num_roads:
        raise DataError(f"{path}, line {zones.argmax() + 1}: zone {zones.max()} exceeds the number of roads")
    return zones


def transitions(train: Counts, zone: Int64, successors: Successors) -> Int64:
    """Counts of consecutive roads in different zones: int64 [Z, Z], zero diagonal."""
    num_zones = int(zone.max()) + 1
    source, target = zone[successors.origin], zone[successors.roads]
    flow = np.bincount(source * num_zones + target, weights=train.transition, minlength=num_zones**2)
    counts = flow.astype(np.int64).reshape(num_zones, num_zones)  # exact: far below 2 ** 53
    np.fill_diagonal(counts, 0)
    return counts


def zone_graph(counts: Int64) -> tuple[Int64, Float32]:
    """Edges of the zone graph, int64 [2, EZ], and their weights, float32 [EZ].

    w_ij = M_ij / sqrt(max(r_i, 1)) / sqrt(max(r_j, 1)) where M_ij > 0; r are row sums of M,
    on both sides, as public HOSER has it.
    """
    source, target = np.nonzero(counts)
    root = np.sqrt(np.maximum(counts.sum(axis=1), 1))
    weight = counts[source, target] / root[source] / root[target]
    return np.stack([source, target]), weight.astype(np.float32)


def warn_if_matrix_differs(raw: Path, counts: Int64) -> None:
    """The raw directory's own matrix is never used; says so where it is another one."""
    path = raw / MATRIX_FILE
    if not path.exists():
        return
    try:
        given = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s); the matrix is counted from train.csv", path, error)
        return
    if not np.array_equal(given, counts):
        log.warning("%s is not what train.csv gives; the counts from train.csv are used", path)
