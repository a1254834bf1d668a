"""Zones: a partition of the roads, and the flow of the training trips between them."""

from __future__ import annotations

import logging
from pathlib import Path

import kahip
import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.errors import DataError
from shared.store import Trips
from student_trainer.prepare.config import ZonesConfig
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import step_index

Int = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

PARTITION_FILE = "road_network_partition"
MATRIX_FILE = "zone_trans_mat.npy"

IMBALANCE = 0.03
"""How much larger than the average a zone may be; KaHIP's own default."""
STRONG = 2
"""KaHIP's number for its strong preconfiguration."""


def road_zones(raw: Path, successors: Successors, config: ZonesConfig) -> Int:
    """Zone of each road, int64 [N]: from the raw directory if it has a partition, else by KaHIP."""
    path = raw / PARTITION_FILE
    num_roads = len(successors.degree)
    if path.exists():
        return read_partition(path, num_roads)
    count = min(config.count, max(1, num_roads // config.min_roads))
    if count < config.count:
        log.info("%d zones instead of %d: %d roads a zone at least", count, config.count, config.min_roads)
    return partition(successors, count, config.seed)


def read_partition(path: Path, num_roads: int) -> Int:
    """Reads `road_network_partition`: one zone a line, one line a road; raises `DataError`."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for number, text in enumerate(lines, start=1):
        if not text.isdecimal():
            raise DataError(f"{path}, line {number}: expected a zone number, not {text!r}")
    if len(lines) != num_roads:
        raise DataError(f"{path} has {len(lines)} lines for {num_roads} roads in roadmap.geo; it must have one a road")
    zones = np.array(lines, np.int64)
    if zones.max() >= num_roads:
        raise DataError(f"{path}, line {zones.argmax() + 1}: zone {zones.max()} exceeds the number of roads")
    return zones


def partition(successors: Successors, count: int, seed: int) -> Int:
    """Cuts the network, as an undirected graph, into balanced zones with few edges between them."""
    num_roads = len(successors.degree)
    if count == 1:
        return np.zeros(num_roads, np.int64)
    source = np.concatenate([successors.origin, successors.roads.astype(np.int64)])
    target = np.concatenate([successors.roads.astype(np.int64), successors.origin])
    edges = np.unique((source * num_roads + target)[source != target])
    source, target = np.divmod(edges, num_roads)
    offsets = ragged.offsets(np.bincount(source, minlength=num_roads))
    quiet = True
    _, zones = kahip.kaffpa(
        [1] * num_roads, offsets.tolist(), [1] * len(target), target.tolist(), count, IMBALANCE, quiet, seed, STRONG
    )
    return np.array(zones, np.int64)


def transitions(train: Trips, zone: Int) -> Int:
    """Counts of consecutive roads in different zones: int64 [Z, Z], zero diagonal."""
    num_zones = int(zone.max()) + 1
    step = step_index(train.offsets)
    source, target = zone[train.roads[step]], zone[train.roads[step + 1]]
    counts = np.bincount(source * num_zones + target, minlength=num_zones**2).reshape(num_zones, num_zones)
    np.fill_diagonal(counts, 0)
    return counts


def zone_graph(counts: Int) -> tuple[Int, npt.NDArray[np.float32]]:
    """Edges of the zone graph, int64 [2, EZ], and their weights, float32 [EZ].

    w_ij = M_ij / sqrt(max(r_i, 1)) / sqrt(max(r_j, 1)) where M_ij > 0; r are row sums of M,
    on both sides, as public HOSER has it.
    """
    source, target = np.nonzero(counts)
    root = np.sqrt(np.maximum(counts.sum(axis=1), 1))
    weight = counts[source, target] / root[source] / root[target]
    return np.stack([source, target]), weight.astype(np.float32)


def warn_if_matrix_differs(raw: Path, counts: Int) -> None:
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
