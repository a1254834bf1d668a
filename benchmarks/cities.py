"""The stores that the sections measure on, prepared once; a synthetic city where the real data are absent."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from benchmarks.common import REPOSITORY, Options
from shared.store import Store
from student_trainer.demo_city import run as demo_city
from student_trainer.demo_city.config import DemoCityConfig, TripCounts
from student_trainer.prepare import run as prepare
from student_trainer.prepare.config import GridConfig, PrepareConfig

DATA = REPOSITORY.parent / "shared" / "data"
"""Where cities in HOSER format may lie beside the repository."""

DEMO_GRID = GridConfig(cell_size=0.0002, vocabulary="full")
"""More than 20,000 cells on the demo city."""
QUICK_TRIPS = TripCounts(train=320, val=128, test=1)


def open_store(options: Options, name: str, grid: GridConfig) -> Store:
    """The store of the options, or of the named city, or of the demo city."""
    if options.store is not None:
        return Store(options.store)
    raw = DATA / name
    if options.quick or not raw.is_dir():
        raw, grid = _demo_city(options), DEMO_GRID
    out = options.work / raw.name
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        prepare.run(PrepareConfig(raw=raw, out=out, grid=grid))
    return Store(out)


def _demo_city(options: Options) -> Path:
    raw = options.work / "raw" / ("tiny_city" if options.quick else "demo_city")
    config = DemoCityConfig(out=raw, columns=9, rows=9, trips=QUICK_TRIPS) if options.quick else DemoCityConfig(out=raw)
    with contextlib.redirect_stdout(sys.stderr):
        demo_city.run(config)
    return raw
