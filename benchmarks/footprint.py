"""Section `footprint`: time, memory and disk of a city with the trips that it has, and with very many.

The second city has the same roads, and 629,380 trips drawn from the first one's, with replacement. Each job runs in a
process of its own, which is sampled while it runs: preparing (with the partitioner, a child), opening the store, and a
few training steps, memory-mapped and in memory.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import cities, meters
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table
from shared.store import SPLITS, Store

CITY = "sf_taxi"
SEED = 0
MIB = 2**20
EVERY_SECONDS = 0.01
CACHES = ("mmap", "ram")
BATCH_SIZE = 64
MOST_TRAINING_MIB, MOST_OPENING_SECONDS = 2048, 1.0

OPEN = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from shared.store import Store
imported = time.perf_counter()
store = Store(Path(sys.argv[1]))
trips = [store.trips(split, sys.argv[2]) for split in ("train", "val", "test")]
print(json.dumps({"import_s": imported - start, "open_s": time.perf_counter() - imported}))
"""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        trips: of the large city, by split.
        steps: of training; the trips for them are drawn from all.
        val_trips: to validate on afterwards.
    """

    trips: tuple[int, int, int] = (440_566, 62_938, 125_876)
    steps: int = 8
    val_trips: int = 256


QUICK = Size(trips=(700, 100, 200), steps=2, val_trips=16)


@dataclasses.dataclass(frozen=True)
class Ran:
    """A process that has ended: what it printed, how long it took, and its greatest resident size."""

    output: str
    seconds: float
    peak_mib: float


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if a job fails."""
    size = QUICK if options.quick else Size()
    raw, is_demo = cities.raw_city(options, CITY)
    large = cities.sampled_city(
        raw, options.work / "raw" / f"{raw.name}_{sum(size.trips)}", dict(zip(SPLITS, size.trips, strict=True)), SEED
    )
    work = options.work / "footprint"
    overrides = [f"grid.cell_size={cities.DEMO_GRID.cell_size}", "grid.vocabulary=full"] if is_demo else []
    figures = {city.name: _measure(city, work, overrides, size) for city in (raw, large)}
    settings = {
        **cities.facts(Store(work / large.name)),
        "batch_size": BATCH_SIZE,
        **dataclasses.asdict(size),
    }
    tables = [_prepare_table(figures), _use_table(figures)]
    return Result("footprint", "Time, memory and disk by number of trips", settings, figures, tables, _notes(figures))


def _measure(raw: Path, work: Path, overrides: Sequence[str], size: Size) -> dict[str, Any]:
    store = work / raw.name
    _remove(store)
    prepared = _run("-m", "student_trainer", "prepare", "--raw", raw, "--out", store, *overrides)
    manifest = Store(store).manifest
    found: dict[str, Any] = {
        "trips": sum(facts["trips"] for facts in manifest["splits"].values()),
        "raw_mib": _disk_mib(raw),
        "store_mib": _disk_mib(store),
        "prepare": {"seconds": prepared.seconds, "peak_mib": prepared.peak_mib},
        "unchanged_s": _run("-m", "student_trainer", "prepare", "--raw", raw, "--out", store, *overrides).seconds,
        "use": {},
    }
    for cache in CACHES:
        opened = _run("-c", OPEN, store, cache)
        trained = _train(store, work / "run", cache, size)
        found["use"][cache] = {
            **json.loads(opened.output),
            "open_peak_mib": opened.peak_mib,
            "train_seconds": trained.seconds,
            "train_peak_mib": trained.peak_mib,
        }
    return found


def _train(store: Path, out: Path, cache: str, size: Size) -> Ran:
    _remove(out)
    settings = [
        f"batch.cache={cache}", f"batch.train_trips={size.steps * BATCH_SIZE}", f"batch.val_trips={size.val_trips}",
        f"optim.batch_size={BATCH_SIZE}", "optim.epochs=1", "log.tensorboard=false", "log.progress=false",
    ]  # fmt: skip
    return _run("-m", "student_trainer", "train", "--data", store, "--out", out, *settings)


def _run(*arguments: str | Path) -> Ran:
    """Runs Python to its end and samples its resident size, its children's included."""
    command = [sys.executable, *map(str, arguments)]
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, cwd=REPOSITORY)
        try:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                peak = max(peak, meters.tree_rss(root))
                time.sleep(EVERY_SECONDS)
        finally:
            process.kill()
        seconds = time.perf_counter() - start
        out.seek(0)
        log.seek(0)
        output, errors = out.read(), log.read()
    if process.returncode:
        raise BenchmarkError(f"{' '.join(command[1:4])} ended with {process.returncode}: {errors.strip()[-500:]}")
    return Ran(output, seconds, peak / MIB)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _disk_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB


def _prepare_table(figures: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{found['trips']:,}",
            f"{found['raw_mib']:.0f}",
            f"{found['store_mib']:.0f}",
            f"{found['prepare']['seconds']:.1f}",
            f"{found['prepare']['peak_mib']:.0f}",
            f"{found['unchanged_s']:.1f}",
        ]
        for name, found in figures.items()
    ]
    header = ["city", "trips", "raw MiB", "store MiB", "prepare, s", "peak MiB", "again, unchanged, s"]
    return Table("prepare", header, rows)


def _use_table(figures: dict[str, Any]) -> Table:
    rows = [
        [
            f"{name}, {cache}",
            f"{1000 * use['open_s']:.1f}",
            f"{use['open_peak_mib']:.0f}",
            f"{use['train_seconds']:.1f}",
            f"{use['train_peak_mib']:.0f}",
        ]
        for name, found in figures.items()
        for cache, use in found["use"].items()
    ]
    header = ["city and cache", "open, ms", "peak MiB", "train, s", "peak MiB of training"]
    return Table("opening and training", header, rows)


def _notes(figures: dict[str, Any]) -> list[str]:
    *_, (name, large) = figures.items()
    mapped = large["use"]["mmap"]
    return [
        f"Peaks are the most that was seen of the resident size (memory-mapped pages that were read included), every "
        f"{1000 * EVERY_SECONDS:.0f} ms, of the process and its children; times of jobs include starting Python.",
        "Open: the store and all three splits, in a new process, without the imports. Files were in the page cache.",
        "Training: the default model without a teacher, trips drawn from all, then validation on a sample, and "
        "writing checkpoints.",
        f"{name}, memory-mapped: opens in {mapped['open_s']:.3f} s ({_verdict(mapped['open_s'], MOST_OPENING_SECONDS)} "
        f"{MOST_OPENING_SECONDS:g} s), trains in {mapped['train_peak_mib']:.0f} MiB "
        f"({_verdict(mapped['train_peak_mib'], MOST_TRAINING_MIB)} {MOST_TRAINING_MIB} MiB).",
    ]


def _verdict(value: float, limit: float) -> str:
    return "under" if value < limit else "NOT under"
