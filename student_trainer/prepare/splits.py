"""A split's trips: from its file to the store and back, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.store import Trips
from student_trainer.prepare import raw
from student_trainer.prepare.arrays import ArrayWriter
from student_trainer.prepare.clock import Clock
from student_trainer.prepare.network import Successors
from student_trainer.prepare.raw import CellError, TripFile
from student_trainer.prepare.trips import usable
from student_trainer.prepare.words import counted, reasons
from student_trainer.prepare.workers import Workers

BLOCK_ROADS = 2**18
"""Roads of a block of trips that is read from the store, unless one trip has more."""

DTYPES = {"roads": np.int32, "times": np.int64, "offsets": np.int64, "source_rows": np.int64}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    trips: Trips
    dropped: dict[str, int]
    clock: Clock
    rows: int
    size: int


def write(
    file: TripFile,
    folder: Path,
    successors: Successors,
    strict: bool,
    workers: Workers,
    advance: Callable[[int], object],
) -> dict[str, Any]:
    """Writes the usable trips of a file as the arrays of `Trips`, in the file's order.

    Args:
        file: the split.
        folder: where the arrays go; made here.
        successors: the road network.
        strict: refuse trips that a model cannot learn from, instead of dropping them.
        workers: parse blocks at the same time; what is written does not depend on them.
        advance: told the bytes that are done.

    Returns:
        How many trips, roads and steps there are, the longest trip, what was `dropped` for which reason, and what
        `Clock.facts` finds.

    Raises:
        DataError: a cell cannot be used, or no trip is left.
    """

    def parse(text: bytes) -> _Block:
        found = raw.parse_trips(file, text)
        trips, dropped = usable(found, successors, strict)
        return _Block(trips, dropped, Clock.of(trips), len(found.offsets) - 1, len(text))

    dropped, clock = Counter[str](), Clock()
    rows = trips = roads = longest = 0
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", dtype)) for name, dtype in DTYPES.items()
        }
        writers["offsets"].append(np.zeros(1, np.int64))
        blocks = workers.in_order(parse, raw.read_trip_blocks(file))
        while True:
            try:
                block = next(blocks, None)
            except CellError as error:
                raise error.further_down(rows) from None
            if block is None:
                break
            writers["roads"].append(block.trips.roads)
            writers["times"].append(block.trips.times)
            writers["offsets"].append(block.trips.offsets[1:] + roads)
            writers["source_rows"].append(block.trips.source_rows + rows)
            rows += block.rows
            trips += len(block.trips)
            roads += len(block.trips.roads)
            longest = max(longest, int(block.trips.lengths.max(initial=0)))
            dropped.update(block.dropped)
            clock.add(block.clock)
            advance(block.size)
    if not trips:
        raise DataError(f"{file.path} has no usable trip: {_of(rows, dropped)}")
    if trips < rows:
        log.warning("%s: %d of %d trips dropped: %s", file.path, rows - trips, rows, reasons(dropped))
    facts = {"trips": trips, "roads": roads, "steps": roads - trips, "longest_trip": longest}
    times = clock.facts(file.path.stem)
    times["findings"] += raw.cut_findings(file.path)
    return {**facts, "dropped": dict(dropped), **times}


def read(folder: Path) -> Iterator[Trips]:
    """The trips of a split in blocks that hold them in memory; which trips form a block depends on nothing else."""
    offsets = _mapped(folder, "offsets")
    starts = np.searchsorted(offsets, np.arange(0, int(offsets[-1]), BLOCK_ROADS))
    limits = np.unique(np.append(starts, len(offsets) - 1))
    del offsets
    for first, last in itertools.pairwise(limits.tolist()):
        yield _read_some(folder, first, last)


def _read_some(folder: Path, first: int, last: int) -> Trips:
    offsets = np.array(_mapped(folder, "offsets")[first : last + 1])
    roads, times = (np.array(_mapped(folder, name)[offsets[0] : offsets[-1]]) for name in ("roads", "times"))
    return Trips(roads, times, offsets - offsets[0], np.array(_mapped(folder, "source_rows")[first:last]))


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    """Mapped anew for each block: pages that were read do not stay in the process."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")


def _of(rows: int, dropped: Mapping[str, int]) -> str:
    """What has become of all rows."""
    return f"of {counted(rows, 'trip')} dropped: {reasons(dropped)}" if rows else "it has no rows"
