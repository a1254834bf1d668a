"""Section `host`: what the processor does for a position of a teacher that computes nothing.

    new              each distinct window of real trips once, in requests of 2,048; with the whole history, all trips
    new, at random   windows of random cells: no two have a prefix in common but by chance
    first pass       real trips, nothing known before
    known            the same once more

With `--baseline CHECKOUT` another checkout's code is measured in turns with this one's, each turn in a process of its
own, so that what else the machine does meets both. Time is that of the thread on the processor, page faults included.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import cities
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.weights import write_random
from shared.grid import Grid
from shared.store import Store
from shared.vocab import Tokeniser, Vocabulary
from student_trainer.prepare.config import GridConfig

CITY, GRID = "sf_taxi_core", GridConfig()
CELLS = 52_000
"""Of the teacher's vocabulary, or as many as the store has: random cells are of all of them."""
KINDS = ("new", "new, at random", "first pass", "known")
PARTS = ("check", "look up", "cut", "assemble", "remember", "collect")


@dataclasses.dataclass(frozen=True)
class Regime:
    """What is asked, and of which tiles.

    Attributes:
        window: cells of history; 0: all of it.
        tile_tokens: of the largest tile.
    """

    window: int
    tile_tokens: int

    @property
    def name(self) -> str:
        """Window and tile."""
        return f"{f'window {self.window}' if self.window else 'whole history'}, tiles of {self.tile_tokens:,}"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        regimes: one after another.
        trips: of a pass.
        rounds: turns of each checkout.
        repeats: passes of a turn, of which the median counts.
    """

    regimes: tuple[Regime, ...] = (Regime(4, 16_384), Regime(4, 512), Regime(0, 512))
    trips: int = 20_000
    rounds: int = 3
    repeats: int = 2


QUICK = Size((Regime(4, 256), Regime(0, 256)), trips=32, rounds=1, repeats=1)


def run(options: Options) -> Result:
    """Measures."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = _teacher(options.work, store)
    checkouts = {"this": REPOSITORY} | ({"baseline": options.baseline} if options.baseline else {})
    figures = {}
    for regime in size.regimes:
        turns: dict[str, list[Any]] = {name: [] for name in checkouts}
        for number in range(size.rounds):
            for name in rotated([*checkouts], number):
                turns[name].append(_turn(checkouts[name], store, teacher, regime, size))
        figures[regime.name] = {name: _summary(found) for name, found in turns.items()}
    settings = {**cities.facts(store), "cells": CELLS, **dataclasses.asdict(size)}
    settings["baseline"] = _revision(options.baseline) if options.baseline else None
    tables = [_totals(figures), *(_parts(name, found) for name, found in figures.items())]
    title = "The processor's work for a position, without the model's"
    return Result("host", title, settings, figures, tables, _notes(settings))


def _teacher(work: Path, store: Store) -> Path:
    """A teacher that is as small as can be, over a full grid."""
    columns = 260
    rows = -(-max(CELLS, store.tokeniser.vocabulary.cells) // columns)
    path = work / f"teacher_of_nothing_{rows * columns}.safetensors"
    if not path.exists():
        grid = Grid.from_bounds((0.0, 0.0, 0.01 * (rows - 0.5), 0.01 * (columns - 0.5)), 0.01, 0.01)
        write_random(path, Tokeniser(Vocabulary.full(grid.cells), grid), 1, 8, 1)
    return path


def _turn(checkout: Path, store: Store, teacher: Path, regime: Regime, size: Size) -> Any:
    """One turn of a checkout in a process of its own.

    Raises:
        BenchmarkError: it cannot be run.
    """
    numbers = (regime.tile_tokens, regime.window, size.trips, size.repeats)
    script = Path(__file__).with_name("host_once.py")
    command = [sys.executable, "-P", script, store.path.resolve(), teacher.resolve(), *numbers]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(
        [str(part) for part in command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{checkout} cannot be measured: {done.stderr.strip() or 'it gave no reason'}")
    return json.loads(done.stdout)


def _revision(checkout: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _summary(turns: list[Any]) -> dict[str, Any]:
    """Microseconds of each part, the median over the turns, and of all parts together with the spread."""
    return {
        kind: {
            "count": turns[0]["counts"][kind],
            "parts": {part: statistics.median(turn["stages"][kind].get(part, 0.0) for turn in turns) for part in PARTS},
            "all": spread([sum(turn["stages"][kind].values()) for turn in turns]),
        }
        for kind in KINDS
    }


def _totals(figures: dict[str, Any]) -> Table:
    rows = []
    for name, found in figures.items():
        for kind in KINDS:
            mine = found["this"][kind]
            row = [f"{name}: {kind}", f"{mine['count']:,}"]
            if "baseline" in found:
                theirs = found["baseline"][kind]["all"]["median"]
                row += [f"{theirs:.3f}", f"{mine['all']['median']:.3f}", f"{theirs / mine['all']['median']:.1f}"]
            else:
                row += ["", f"{mine['all']['median']:.3f}", ""]
            rows.append([*row, f"{mine['all']['min']:.3f} to {mine['all']['max']:.3f}"])
    header = ["what is asked", "positions", "baseline, µs", "now, µs", "x", "now, least to most"]
    return Table("Microseconds a new position, or a position of a pass", header, rows)


def _parts(name: str, found: dict[str, Any]) -> Table:
    rows = []
    for part in PARTS:
        cells = [[found[way][kind]["parts"][part] for way in found] for kind in KINDS]
        rows.append([part, *(" ".join(f"{value:.3f}" for value in reversed(values)) for values in cells)])
    which = "baseline, then now" if "baseline" in found else "now"
    return Table(f"{name}: parts in µs, {which}", ["part", *KINDS], rows)


def _notes(settings: dict[str, Any]) -> list[str]:
    return [
        f"Trips of {settings['city']}; a teacher whose scores cost nothing, over "
        f"{settings['cells']:,} cells. Requests of 2,048 distinct windows, or of 64 trips.",
        "Time is that of one thread on the processor, page faults included; what else the machine does shows by its "
        "share of the caches.",
        "Every pass but that of what is known begins with an empty table of 1,024 MiB; making it is not counted.",
        "With the whole history a row is a trip; figures are of a scored position all the same.",
        f"Medians over {settings['rounds']} turns in processes of their own; the baseline is "
        f"{settings['baseline'] or 'not measured'}.",
    ]
