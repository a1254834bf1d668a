"""The stores that the sections measure on, prepared once; a synthetic city where the real data are absent."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import REPOSITORY, Options
from shared import files
from shared.store import Store
from student_trainer.demo_city.config import DemoCityConfig, TripCounts
from student_trainer.prepare.config import GridConfig, PrepareConfig

DATA = REPOSITORY.parent / "shared" / "data"
"""Where cities in HOSER format may lie beside the repository."""

DEMO, TINY = "bench_city", "tiny_city"
"""Directories of the synthetic cities."""
DEMO_GRID = GridConfig(cell_size=0.0005, vocabulary="full")
"""More than 20,000 cells on the synthetic city of the benchmarks."""
QUICK_TRIPS = TripCounts(train=320, val=128, test=1)
DEMO_TRIPS = TripCounts(train=20_000, val=2000, test=2000)
"""As many as every section asks for; a minute or two to make, once."""


def open_store(options: Options, name: str, grid: GridConfig) -> Store:
    """The store of the options, or of the named city, or of the demo city."""
    if options.store is not None:
        return Store(options.store)
    from student_trainer.prepare import run as prepare  # polars and kahip: not needed to open a store

    raw, is_demo = raw_city(options, name)
    out = options.work / raw.name
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        prepare.run(PrepareConfig(raw=raw, out=out, grid=DEMO_GRID if is_demo else grid))
    return Store(out)


def name(store: Store) -> str:
    """Of the city that a store was prepared from."""
    return Path(store.manifest["settings"]["raw"]).name


def facts(store: Store) -> dict[str, str]:
    """Which data figures are of: `store`, its fingerprint; `city`, its name; `data`, its size in words."""
    roads, splits = len(store.road_token), store.manifest["splits"]
    kinds = {DEMO: "synthetic, larger than `make demo`'s, ", TINY: "synthetic, for a quick look, "}
    made = next((words for city, words in kinds.items() if name(store).startswith(city)), "")
    data = f"{name(store)} ({made}{roads:,} roads, {splits['train']['trips']:,} training trips)"
    return {"store": store.fingerprint, "city": name(store), "data": data}


def raw_city(options: Options, name: str) -> tuple[Path, bool]:
    """The directory of the named city in HOSER format, or of the demo city; whether it is the latter."""
    raw = DATA / name
    if options.quick or not raw.is_dir():
        return _demo_city(options), True
    return raw, False


def sampled_city(raw: Path, out: Path, trips: dict[str, int], seed: int) -> Path:
    """A city with the roads of another one and so many of its trips, drawn with replacement: made once.

    Args:
        raw: the other city.
        out: directory to write.
        trips: how many, by split.
        seed: of the draw; the same rows are drawn wherever it is made.
    """
    if out.exists():
        return out
    with files.atomic_directory(out) as folder:
        for name in ("roadmap.geo", "roadmap.rel"):
            shutil.copyfile(raw / name, folder / name)
        for number, (split, count) in enumerate(trips.items()):
            header, *rows = (raw / f"{split}.csv").read_bytes().splitlines(keepends=True)
            drawn = np.random.default_rng((seed, number)).integers(len(rows), size=count)
            with open(folder / f"{split}.csv", "wb") as stream:
                stream.write(header)
                stream.writelines(rows[row] for row in drawn)
    return out


def _demo_city(options: Options) -> Path:
    from student_trainer.demo_city import run as demo_city

    raw = options.work / "raw" / (TINY if options.quick else DEMO)
    if options.quick:
        config = DemoCityConfig(out=raw, columns=9, rows=9, trips=QUICK_TRIPS)
    else:
        if not raw.exists():
            print(f"benchmarks: making a synthetic city in {raw}, once: a minute or two", file=sys.stderr)
        config = DemoCityConfig(out=raw, columns=40, rows=40, drivers=800, trips=DEMO_TRIPS)
    with contextlib.redirect_stdout(sys.stderr):
        demo_city.run(config)
    return raw
