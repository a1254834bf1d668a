"""What `host.py` runs in a process of its own, with this checkout's code or another one's: one line of JSON.

    PYTHONPATH=CHECKOUT python -P benchmarks/host_once.py STORE TEACHER TILE_TOKENS WINDOW TRIPS REPEATS

It uses only what other checkouts have, too.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import questions
from benchmarks.local import LocalTeacher
from benchmarks.questions import Positions
from shared import ragged
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.engine import Engine, Ready
from teacher_server.scorer import Scores

CACHE_MIB = 1024
"""Room for everything that is asked."""
REQUEST_ROWS, REQUEST_TRIPS = 2048, 64

Stages = dict[str, float]
"""Microseconds of each stage, a state or a position."""


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    store, teacher = Store(Path(arguments[0])), Path(arguments[1])
    tile_tokens, window, trips, repeats = (int(text) for text in arguments[2:])
    scorer = engine.load(teacher, EngineConfig(device="cpu", threads=1, tile_tokens=tile_tokens))
    scorer.score = _nothing  # type: ignore[method-assign]
    positions = questions.of_trips(store, store.trips("train"), 0, trips)
    real = _of_trips(positions, window)
    random = questions.at_random(scorer.served.cells, len(positions) // 4, np.random.default_rng(0))
    asked = {
        "new": _distinct(positions, window) if window else real,
        "new, at random": _of_trips(random, window),
        "first pass": real,
    }
    for queries in asked.values():
        _Pass(scorer, queries[:2]).run()  # compiles
    found: dict[str, list[Stages]] = {kind: [] for kind in (*asked, "known")}
    counts: dict[str, int] = {}
    for _ in range(repeats):
        for kind, queries in asked.items():
            gc.collect()
            made = _Pass(scorer, queries).run()
            counts[kind] = len(positions) if kind == "first pass" else made.teacher.table.outcomes[2]
            found[kind].append(made.stages(counts[kind]))
        made.teacher.seconds.clear()
        found["known"].append(made.run().stages(len(positions)))
        counts["known"] = len(positions)
    print(json.dumps({"stages": {kind: _medians(runs) for kind, runs in found.items()}, "counts": counts}))


class _Teacher(LocalTeacher):
    """One whose stages are measured in this thread's time on the processor, so that what else runs is not counted."""

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds[name] += time.thread_time() - start


class _Pass:
    """Requests to a teacher, one after another."""

    def __init__(self, scorer: Engine, asked: Sequence[ScoreQuery]) -> None:
        self.teacher = _Teacher(scorer, CACHE_MIB)
        self._asked = asked

    def run(self) -> _Pass:
        """Asks them all."""
        for query in self._asked:
            self.teacher.score(query)
        return self

    def stages(self, count: int) -> Stages:
        """Microseconds of each stage but the model, for one of so many."""
        return {name: 1e6 * spent / count for name, spent in self.teacher.seconds.items() if name != "model"}


def _nothing(ready: Ready) -> Scores:
    """A model that costs nothing."""
    return Scores(np.zeros(len(ready.batch.candidates), np.float16), np.zeros(len(ready.batch.with_mass), np.float16))


def _of_trips(positions: Positions, window: int) -> list[ScoreQuery]:
    """A trainer's requests about trips."""
    total = len(positions.lengths)
    return [positions.trips(at, min(REQUEST_TRIPS, total - at), window) for at in range(0, total, REQUEST_TRIPS)]


def _distinct(positions: Positions, window: int) -> list[ScoreQuery]:
    """Each distinct window of the trips once, where it occurs first; a road's cell does not decide its successors, so
    the candidates count, too."""
    steps = positions.step + 1
    lengths = np.minimum(steps, window)
    of_windows = ragged.slices(np.arange(len(positions)) + 1 - lengths, lengths)
    cells = ragged.pad(positions.cells[of_windows], lengths, window, -1)
    widest = int(positions.candidate_lengths.max())
    candidates = ragged.pad(positions.candidates, positions.candidate_lengths, widest, -1)
    has_any = np.flatnonzero(positions.candidate_lengths > 0)
    _, first = np.unique(np.hstack([cells, candidates])[has_any], axis=0, return_index=True)
    chosen = has_any[np.sort(first)]
    return [_windows(positions, chosen[at : at + REQUEST_ROWS], lengths) for at in range(0, len(chosen), REQUEST_ROWS)]


def _windows(positions: Positions, chosen: questions.Int64, lengths: questions.Int64) -> ScoreQuery:
    spans = positions.candidate_lengths[chosen]
    return ScoreQuery(
        HistoryMode.WINDOW,
        positions.cells[ragged.slices(chosen + 1 - lengths[chosen], lengths[chosen])],
        lengths[chosen].astype(np.int32),
        positions.candidates[ragged.slices(positions.candidate_offsets[chosen], spans)],
        spans.astype(np.int32),
    )


def _medians(runs: Sequence[Stages]) -> Stages:
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main(sys.argv[1:])
