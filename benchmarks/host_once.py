"""What `host.py` runs in a process of its own, of this checkout or of another one: one line of JSON.

    python -P benchmarks/host_once.py STORE TEACHER TILE_TOKENS WINDOW TRIPS REPEATS    PYTHONPATH: the checkout to measure

It uses only what both checkouts have.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
from collections.abc import Callable, Sequence
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
    store, teacher = Path(arguments[0]), Path(arguments[1])
    tile_tokens, window, trips, repeats = (int(text) for text in arguments[2:])
    scorer = engine.load(teacher, EngineConfig(device="cpu", threads=1, tile_tokens=tile_tokens))
    scorer.score = _nothing  # type: ignore[method-assign]
    opened = Store(store)
    positions = questions.of_trips(opened, opened.trips("train"), 0, trips)
    if window:
        new = _distinct(positions, window)
    else:
        new = [_trips(positions, number, 0) for number in range(0, len(positions.lengths), REQUEST_TRIPS)]
    sequences = [_trips(positions, number, window) for number in range(0, len(positions.lengths), REQUEST_TRIPS)]
    _Pass(scorer, new[:2]).run()  # compiles
    found: dict[str, list[Stages]] = {"new": [], "known": []}
    for _ in range(repeats):
        gc.collect()
        first = _Pass(scorer, new).run()
        misses = first.teacher.table.outcomes[2]
        found["new"].append({name: 1e6 * spent / misses for name, spent in first.teacher.seconds.items()})
        known = _Pass(scorer, sequences, first.teacher if not window else None)
        if window:
            known.run()  # the first pass
        known.teacher.seconds.clear()
        known.run()
        seconds = known.teacher.seconds.items()
        found["known"].append({name: 1e6 * spent / len(positions) for name, spent in seconds})
    stages = {kind: _medians(runs) for kind, runs in found.items()}
    print(json.dumps({"stages": stages, "new": misses, "known": len(positions)}))


class _Pass:
    """Requests to a teacher, one after another."""

    def __init__(self, scorer: Engine, asked: Sequence[ScoreQuery], teacher: LocalTeacher | None = None) -> None:
        self.teacher = teacher or LocalTeacher(scorer, CACHE_MIB)
        self._asked = asked

    def run(self) -> _Pass:
        """Asks them all."""
        for query in self._asked:
            self.teacher.score(query)
        return self


def _nothing(ready: Ready) -> Scores:
    """A model that costs nothing."""
    return Scores(np.zeros(len(ready.batch.candidates), np.float16), np.zeros(len(ready.batch.with_mass), np.float16))


def _trips(positions: Positions, first: int, window: int) -> ScoreQuery:
    return positions.trips(first, min(REQUEST_TRIPS, len(positions.lengths) - first), window)


def _distinct(positions: Positions, window: int) -> list[ScoreQuery]:
    """Each distinct window of the trips once, where it occurs first; a road's cell does not decide its successors, so
    the candidates count, too."""
    steps = positions.step + 1
    lengths = np.minimum(steps, window)
    cells = ragged.pad(positions.cells[ragged.slices(np.arange(len(positions)) + 1 - lengths, lengths)], lengths, window, -1)
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
    median: Callable[[list[float]], float] = statistics.median
    return {name: median([run.get(name, 0.0) for run in runs]) for name in runs[0]}


if __name__ == "__main__":
    main(sys.argv[1:])
