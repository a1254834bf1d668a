"""Section `prefixes`: where it pays to compute each distinct prefix of a batch's contexts once.

The same batches of real windows, with nothing remembered, by engines that share prefixes never, and up to windows of
so many tokens; by turns. All give the same answers up to a rounding of float16.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks import cities, questions
from benchmarks.common import BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.local import LocalTeacher
from benchmarks.teacher import CITY, GRID, ROUNDING
from benchmarks.weights import write_teacher
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        teachers: layers and width of each.
        prefix_windows: settings that are compared; 0: never.
        windows: cells of history.
        trips: of a batch.
        rounds: batches, each by all engines.
    """

    teachers: tuple[tuple[int, int], ...] = ((4, 256),)
    prefix_windows: tuple[int, ...] = (0, 8, 16)
    windows: tuple[int, ...] = (2, 4, 8, 16)
    trips: tuple[int, ...] = (2, 16)
    rounds: int = 5


QUICK = Size(teachers=((2, 32),), prefix_windows=(0, 8), windows=(4,), trips=(2,), rounds=2)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the engines disagree."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    figures: dict[str, Any] = {}
    for n_layer, n_embd in size.teachers:
        path = write_teacher(options.work / f"prefixes_{n_layer}x{n_embd}.safetensors", store, n_layer, n_embd)
        engines = {
            w: engine.load(path, EngineConfig(device="cpu", threads=1, prefix_window=w)) for w in size.prefix_windows
        }
        positions = questions.of_trips(store, store.trips("val"), 0, max(size.trips) * (size.rounds + 1))
        for window in size.windows:
            for trips in size.trips:
                found = _measure(engines, positions, window, trips, size.rounds)
                figures[f"{n_layer} x {n_embd}, window {window}, {trips} trips"] = found
    settings = {**cities.facts(store), **dataclasses.asdict(size)}
    return Result("prefixes", "Shared prefixes", settings, figures, [_table(figures, size)], _notes(size))


def _measure(
    engines: dict[int, engine.Engine], positions: questions.Positions, window: int, trips: int, rounds: int
) -> dict[str, Any]:
    speeds: dict[int, list[float]] = {w: [] for w in engines}
    before = {w: dataclasses.replace(e.computed) for w, e in engines.items()}
    for number in range(rounds + 1):
        query = positions.trips(number * trips, trips, window)
        answers = {}
        for w in rotated(list(engines), number):
            teacher = LocalTeacher(engines[w], 0)
            start = time.perf_counter()
            answers[w] = teacher.score(query).astype(np.float32)
            if number:  # the first one warms up
                speeds[w].append(query.positions / (time.perf_counter() - start))
        reference = next(iter(answers.values()))
        if not all(np.allclose(found, reference, rtol=ROUNDING, atol=ROUNDING) for found in answers.values()):
            raise BenchmarkError("engines that share prefixes and those that do not gave different answers")
    plain = speeds[next(iter(engines))]
    return {
        "positions_per_second": {w: spread(found) for w, found in speeds.items()},
        "ratio": {w: spread([a / b for a, b in zip(found, plain, strict=True)]) for w, found in speeds.items()},
        "tokens_a_state": {
            w: (e.computed.tokens - before[w].tokens) / max(1, e.computed.states - before[w].states)
            for w, e in engines.items()
        },
    }


def _table(figures: dict[str, Any], size: Size) -> Table:
    rows = [
        [
            name,
            f"{found['positions_per_second'][size.prefix_windows[0]]['median']:,.0f}",
            *(f"{found['ratio'][w]['median']:.2f}" for w in size.prefix_windows[1:]),
            *(f"{found['tokens_a_state'][w]:.2f}" for w in size.prefix_windows),
        ]
        for name, found in figures.items()
    ]
    header = [
        "batch",
        f"positions/s, prefix_window {size.prefix_windows[0]}",
        *(f"x with {w}" for w in size.prefix_windows[1:]),
        *(f"tokens a state, {w}" for w in size.prefix_windows),
    ]
    return Table("Speed by engine.prefix_window", header, rows)


def _notes(size: Size) -> list[str]:
    return [
        f"One thread, nothing remembered, {size.rounds} batches of fresh validation trips by turns; ratios "
        "are taken batch by batch, medians.",
        "Windows above the setting are computed context by context in both, so that a ratio there is noise.",
    ]
