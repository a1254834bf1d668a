"""Cutting the network into zones, beside the rest of the work: KaHIP takes one core for seconds and holds the
interpreter's lock, so it runs in a process of its own.

That process is `python -m student_trainer.prepare.partition`: pairs in on stdin, zones out on stdout.
"""

from __future__ import annotations

import os
import subprocess
import sys

import kahip
import numpy as np

from shared import processes, ragged
from shared.arrays import Int64
from shared.errors import DataError

IMBALANCE = 0.03
"""How much larger than the average a zone may be; KaHIP's own default."""
STRONG = 2
"""KaHIP's number for its strong preconfiguration."""


def partition(origin: Int64, destination: Int64, num_roads: int, count: int, seed: int) -> Int64:
    """Cuts the network, as an undirected graph, into balanced zones with few edges between them.

    Args:
        origin, destination: int64 [S] the pairs of successors.
        num_roads: N.
        count: number of zones.
        seed: of the partitioner.

    Returns:
        Zone of each road, int64 [N].
    """
    if count == 1:
        return np.zeros(num_roads, np.int64)
    source, target = np.concatenate([origin, destination]), np.concatenate([destination, origin])
    edges = np.unique((source * num_roads + target)[source != target])
    source, target = np.divmod(edges, num_roads)
    offsets = ragged.offsets(np.bincount(source, minlength=num_roads))
    quiet = True
    _, zones = kahip.kaffpa(
        [1] * num_roads, offsets.tolist(), [1] * len(target), target.tolist(), count, IMBALANCE, quiet, seed, STRONG
    )
    return np.array(zones, np.int64)


class Partitioning:
    """A partition that is computed by another process, which ends with the context."""

    def __init__(self, origin: Int64, destination: Int64, num_roads: int, count: int, seed: int) -> None:
        """Starts; the arguments are those of `partition`."""
        self._process = subprocess.Popen(
            processes.command(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=processes.environment(), start_new_session=True,  # an interrupt is for the parent, which ends it
        )  # fmt: skip
        assert self._process.stdin is not None
        with self._process.stdin as stream:
            stream.write(np.concatenate([[num_roads, count, seed], origin, destination]).astype(np.int64).tobytes())

    def __enter__(self) -> Partitioning:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def result(self) -> Int64:
        """Waits for the zones, int64 [N]; raises `DataError` if the process failed (its own words are on stderr)."""
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        if code := self._process.wait():
            raise DataError(f"the partitioner ended with {code}; give a road_network_partition, or change zones.count")
        return np.frombuffer(answer, np.int64)


def main() -> None:
    """The process: see `Partitioning`."""
    question = np.frombuffer(sys.stdin.buffer.read(), np.int64)
    num_roads, count, seed = question[:3].tolist()
    origin, destination = np.split(question[3:], 2)
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is not the answer
    zones = partition(origin, destination, num_roads, count, seed)
    with answer:
        answer.write(zones.tobytes())


if __name__ == "__main__":
    main()
