"""Section `memory`: the resident size of a daemon at full load whose cache is so small that it evicts all the time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import cities, daemon, load, meters
from benchmarks.common import Options, Result, Table
from benchmarks.daemon import Daemon
from benchmarks.load import Load
from benchmarks.teacher import CITY, GRID
from benchmarks.weights import write_teacher

MIB = 2**20
TABLE_ROWS = 12


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        n_layer, n_embd: of the teacher.
        minutes: of load.
        every: seconds between two samples.
        cache_mib: bound of what the teacher remembers.
        positions: of a request.
    """

    n_layer: int = 4
    n_embd: int = 256
    minutes: float = 10.0
    every: float = 5.0
    cache_mib: int = 8
    positions: int = 2000


QUICK = Size(n_layer=2, n_embd=32, minutes=0.05, every=0.5, cache_mib=1, positions=500)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was seen at one time: seconds since the load began; resident MiB; counts; None: the server has no such."""

    seconds: float
    rss_mib: float
    positions: float | None
    cache_mib: float | None
    cache_rows: float | None
    evictions: float | None


def run(options: Options) -> Result:
    """Measures; raises `ConfigError` if the load broke off."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = write_teacher(options.work / "teacher.safetensors", store, size.n_layer, size.n_embd)
    with daemon.serve(teacher, "engine.threads=1", daemon.remembering(size.cache_mib)) as server:
        samples = [_sample(server, 0.0)]
        asked = Load(
            server.address, store.path, clients=2, positions=size.positions, seconds=3600.0 * 24, contexts="random",
            in_flight=4,
        )  # fmt: skip
        with load.beside(asked, server.metrics):
            start = time.monotonic()
            while (now := time.monotonic() - start) < 60 * size.minutes:
                time.sleep(size.every)
                samples.append(_sample(server, now + size.every))
    figures = {**judge(samples), "samples": [dataclasses.asdict(sample) for sample in samples]}
    settings = {
        **cities.facts(store),
        **dataclasses.asdict(size),
    }
    return Result("memory", "Memory at full load", settings, figures, [_table(samples)], _notes(settings, figures))


def _sample(server: Daemon, seconds: float) -> Sample:
    found = meters.scrape(server.metrics)
    cached = meters.total(found, "teacher_cache_bytes")
    return Sample(
        seconds=seconds,
        rss_mib=meters.tree_rss(server.process) / MIB,
        positions=meters.total(found, "teacher_scored_positions_total"),
        cache_mib=None if cached is None else cached / MIB,
        cache_rows=meters.total(found, "teacher_cache_rows"),
        evictions=meters.total(found, "teacher_cache_evictions_total"),
    )


def judge(samples: Sequence[Sample]) -> dict[str, Any]:
    """Start, end, slope of the second half (least squares), and bytes of a remembered position."""
    half = samples[len(samples) // 2 :]
    slope = float(np.polyfit([s.seconds / 60 for s in half], [s.rss_mib for s in half], 1)[0])
    remembered = [MIB * s.cache_mib / s.cache_rows for s in samples if s.cache_mib is not None and s.cache_rows]
    return {
        "start_mib": samples[0].rss_mib,
        "end_mib": samples[-1].rss_mib,
        "most_mib": max(sample.rss_mib for sample in samples),
        "slope_mib_per_minute": slope,
        "bytes_per_position": statistics.median(remembered) if remembered else None,
        "evictions": samples[-1].evictions,
        "positions": samples[-1].positions,
    }


def _table(samples: Sequence[Sample]) -> Table:
    chosen = sorted({round(i) for i in np.linspace(0, len(samples) - 1, TABLE_ROWS)})

    def text(value: float | None, shape: str) -> str:
        return "" if value is None else format(value, shape)

    rows = [
        [
            f"{sample.seconds / 60:.2f}",
            f"{sample.rss_mib:.1f}",
            text(sample.positions, ",.0f"),
            text(sample.cache_mib, ".2f"),
            text(sample.cache_rows, ",.0f"),
            text(sample.evictions, ",.0f"),
        ]
        for sample in (samples[i] for i in chosen)
    ]
    header = ["minutes", "resident MiB", "positions computed", "cache MiB", "rows remembered", "evictions"]
    return Table("a server under load", header, rows)


def _notes(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    notes = [
        f"Teacher of {settings['n_layer']} layers of {settings['n_embd']}, one thread; requests of "
        f"{settings['positions']:,} positions of random cells, never the same, from 2 clients with up to 4 in flight; "
        f"bound of the cache {settings['cache_mib']} MiB.",
        f"From {figures['start_mib']:.1f} MiB, ready to serve, to {figures['end_mib']:.1f} MiB, at most "
        f"{figures['most_mib']:.1f}; in the second half {figures['slope_mib_per_minute']:+.3f} MiB a minute.",
    ]
    if figures["bytes_per_position"] is not None:
        notes.append(f"A remembered position takes {figures['bytes_per_position']:.0f} bytes.")
    return notes
