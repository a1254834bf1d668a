"""Section `teacher`: a trainer's first and second pass over real trips, in the process.

    window by window, trip at once    the obvious implementation (naive.py): the full softmax, nothing shared
    first pass, second pass           this engine with its table of rows: in the first nothing is known

The pass is cut into blocks of trips, in the order in which they were driven, and the obvious implementation scores a
few trips before each block, so that both are measured all along. Both give the same answers, which is checked.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import cities, naive, questions
from benchmarks.common import BenchmarkError, Options, Result, Table, spread, torch_threads
from benchmarks.local import Float16, LocalTeacher
from benchmarks.questions import Positions
from benchmarks.weights import write_teacher
from shared import teacher_file
from shared.store import Store
from shared.wire import ScoreQuery, decode_query, decode_reply, encode_query, encode_reply
from shared.wire import ScoreReply as Reply
from student_trainer.prepare.config import GridConfig
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig
from teacher_server.lmtad import model
from teacher_server.lmtad.model import LMTAD

CITY, GRID = "sf_taxi", GridConfig(cell_size=0.0009, vocabulary="full")
"""20,010 cells: a small vocabulary for a full grid, so that the full softmax is not made dearer than it is."""
ROUNDING = 4e-3
"""Answers of the engine are float16."""
CACHE_MIB = 1024
"""Room for everything that the passes ask."""

Naive = Callable[[LMTAD, ScoreQuery, int], Any]


@dataclasses.dataclass(frozen=True)
class Pass:
    """What is asked of a teacher.

    Attributes:
        window: cells of history; 0: all of it.
        trips: of the pass.
        naive_trips: that the obvious implementation scores before a block.
    """

    window: int
    trips: int
    naive_trips: int


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher with random weights, and the passes that it is asked."""

    n_layer: int
    n_embd: int
    passes: tuple[Pass, ...]

    @property
    def name(self) -> str:
        """Layers x width."""
        return f"{self.n_layer} x {self.n_embd}"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        teachers: and their passes.
        blocks: of a pass.
        trips: of a request.
    """

    teachers: tuple[Teacher, ...] = (
        Teacher(4, 256, (Pass(4, 20_000, 4), Pass(8, 20_000, 4), Pass(0, 20_000, 8))),
        Teacher(8, 768, (Pass(4, 20_000, 1), Pass(8, 5_000, 1), Pass(0, 2_000, 2))),
    )
    blocks: int = 5
    trips: int = 64


QUICK = Size((Teacher(2, 32, (Pass(4, 64, 2), Pass(0, 64, 2))),), blocks=2, trips=16)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the ways disagree."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    figures: dict[str, Any] = {}
    for teacher in size.teachers:
        path = options.work / f"teacher_{teacher.n_layer}x{teacher.n_embd}.safetensors"
        write_teacher(path, store, teacher.n_layer, teacher.n_embd)
        header, weights = teacher_file.read(path)
        network = model.load(header, weights)
        for asked in teacher.passes:
            scorer = engine.load(path, EngineConfig(device="cpu"))  # where the obvious implementation is, too
            found = _measure(scorer, network, store, asked, size)
            figures[f"{teacher.name}, {_window(asked.window)}"] = found
    settings = {
        **cities.facts(store),
        "cells": store.tokeniser.vocabulary.cells,
        "cache_mib": CACHE_MIB,
        **dataclasses.asdict(size),
    }
    tables = [_speeds(figures), _work(figures), _stages(figures)]
    return Result("teacher", "The teacher's speed in the process", settings, figures, tables, _notes(settings))


def _measure(scorer: engine.Engine, network: LMTAD, store: Store, asked: Pass, size: Size) -> dict[str, Any]:
    """Both passes, and the obvious implementation between the blocks of the first."""
    positions = questions.of_trips(store, store.trips("train"), 0, asked.trips)
    sot = scorer.served.header.tokeniser.vocabulary.sot
    teacher = LocalTeacher(scorer, CACHE_MIB)
    teacher.score(_request(questions.of_trips(store, store.trips("val"), 0, 4), 0, 4, asked.window))  # compiles
    teacher = LocalTeacher(scorer, CACHE_MIB)
    ways = _ways(network, positions, asked, sot)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    first: list[float] = []
    answers: list[list[Float16]] = []
    blocks = list(itertools.pairwise(np.linspace(0, asked.trips, size.blocks + 1).astype(int).tolist()))
    for start, end in blocks:
        few = _request(positions, start, min(asked.naive_trips, end - start), asked.window)
        for name, (score, threads) in ways.items():
            with torch_threads(threads):
                seconds, found = _timed(score, network, few, sot)
            speeds[name].append(few.positions / seconds)
            _check_agreement(teacher, few, found)
        seconds, found = _timed(_pass, teacher, positions, start, end, asked, size)
        first.append(seconds)
        answers.append(found)
    stages = {name: seconds / len(positions) for name, seconds in teacher.seconds.items()}
    hits, waits, misses = teacher.table.outcomes
    computed = dataclasses.asdict(scorer.computed)
    teacher.seconds.clear()
    second: list[float] = []
    for (start, end), before in zip(blocks, answers, strict=True):
        seconds, again = _timed(_pass, teacher, positions, start, end, asked, size)
        second.append(seconds)
        if not all(map(np.array_equal, before, again)):
            raise BenchmarkError("a remembered answer is not the one that was computed")
    passes = {"first pass": len(positions) / sum(first), "second pass": len(positions) / sum(second)}
    return {
        "positions": len(positions),
        "positions_per_second": {**{name: spread(values) for name, values in speeds.items()}, **passes},
        "ratio": {
            name: {way: passes[name] / statistics.median(values) for way, values in speeds.items()} for name in passes
        },
        "first_pass_seconds_of_blocks": first,
        "second_pass_seconds_of_blocks": second,
        "naive_threads": {name: threads for name, (_, threads) in ways.items()},
        "outcomes": {"hit": hits, "wait": waits, "miss": misses},
        "computed": computed,
        "rows": teacher.table.rows,
        "bytes_per_row": teacher.table.bytes / max(1, teacher.table.rows),
        "first_pass_stage_seconds_per_position": stages,
        "second_pass_stage_seconds_per_position": {
            name: seconds / len(positions) for name, seconds in teacher.seconds.items()
        },
        "codec_seconds_per_position": _codec(positions, asked.window, size.trips),
    }


def _ways(network: LMTAD, positions: Positions, asked: Pass, sot: int) -> dict[str, tuple[Naive, int]]:
    """The obvious implementations, each with as many of torch's threads as make it fastest."""
    ways: dict[str, Naive] = {"whole trips": naive.whole_trips}
    if asked.window:
        ways = {"window by window": naive.window_by_window, "trip at once": naive.trip_at_once}
    few = _request(positions, 0, 1, asked.window)

    def seconds(score: Naive, threads: int) -> float:
        with torch_threads(threads):
            return min(_timed(score, network, few, sot)[0] for _ in range(2))

    def fastest(score: Naive) -> int:
        return min((1, os.cpu_count() or 1), key=lambda threads: seconds(score, threads))

    return {name: (score, fastest(score)) for name, score in ways.items()}


def _request(positions: Positions, first: int, trips: int, window: int) -> ScoreQuery:
    return positions.trips(first, trips, window)


def _pass(teacher: LocalTeacher, positions: Positions, start: int, end: int, asked: Pass, size: Size) -> list[Float16]:
    """The answers to a trainer's requests about these trips."""
    return [
        teacher.score(_request(positions, first, min(size.trips, end - first), asked.window))
        for first in range(start, end, size.trips)
    ]


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found


def _check_agreement(teacher: LocalTeacher, query: ScoreQuery, theirs: Any) -> None:
    """Compares on a table of its own, so that the pass stays a first one."""
    mine = LocalTeacher(teacher.engine, 0).score(query).astype(np.float32)
    if not np.allclose(mine, theirs, rtol=ROUNDING, atol=ROUNDING):
        raise BenchmarkError(f"the engine differs by {np.abs(mine - theirs).max():.2g} in a log-probability")


def _codec(positions: Positions, window: int, trips: int) -> dict[str, float]:
    """What the wire costs both sides, seconds a position: messages to bytes and back, and arrays to messages."""
    query = _request(positions, 0, min(trips, len(positions.lengths)), window)
    request = encode_query(query, 1)
    reply = Reply(np.zeros(len(query.candidate_tokens), np.float16), None, "0" * 16, 10_000, 100_000)
    response = encode_reply(reply, request)
    steps: dict[str, Callable[[], Any]] = {
        "encode the request": lambda: encode_query(query, 1).SerializeToString(),
        "decode the request": lambda: decode_query(type(request).FromString(request.SerializeToString())),
        "encode the answer": lambda: encode_reply(reply, request).SerializeToString(),
        "decode the answer": lambda: decode_reply(
            type(response).FromString(response.SerializeToString()), query, request
        ),
    }
    return {name: min(_timed(step)[0] for _ in range(20)) / query.positions for name, step in steps.items()}


def _window(window: int) -> str:
    return f"window {window}" if window else "whole history"


def _speeds(figures: dict[str, Any]) -> Table:
    rows = []
    for name, found in figures.items():
        obvious = found["ratio"]["first pass"]
        for way, threads in found["naive_threads"].items():
            speed = found["positions_per_second"][way]["median"]
            rows.append([f"{name}: {way}, {threads} threads", f"{speed:,.0f}", *[""] * len(_RATIOS)])
        for way in ("first pass", "second pass"):
            ratios = [f"{found['ratio'][way][base]:,.0f}" if base in obvious else "" for base in _RATIOS]
            rows.append([f"{name}: {way}", f"{found['positions_per_second'][way]:,.0f}", *ratios])
    return Table("Positions a second", ["way", "positions/s", *(f"x {base}" for base in _RATIOS)], rows)


_RATIOS = ("window by window", "trip at once", "whole trips")


def _work(figures: dict[str, Any]) -> Table:
    rows = []
    for name, found in figures.items():
        computed, misses = found["computed"], found["outcomes"]["miss"]
        rows.append(
            [
                name,
                f"{found['positions']:,}",
                f"{misses / found['positions']:.1%}",
                f"{computed['tokens'] / max(1, computed['states']):.2f}",
                f"{computed['padded'] / max(1, computed['tokens']):.2f}",
                f"{found['bytes_per_row']:.0f}",
            ]
        )
    header = ["first pass", "positions", "computed", "tokens or nodes a state", "padded x", "bytes a row remembered"]
    return Table("What the first pass computes", header, rows)


def _stages(figures: dict[str, Any]) -> Table:
    kinds = {
        "codec": "codec_seconds_per_position",
        "first": "first_pass_stage_seconds_per_position",
        "second": "second_pass_stage_seconds_per_position",
    }
    names = [(kind, key, stage) for kind, key in kinds.items() for stage in next(iter(figures.values()))[key]]
    rows = []
    for kind, key, stage in names:
        what = stage if kind == "codec" else f"{stage}, {kind} pass"
        rows.append([what, *(f"{1e9 * found[key].get(stage, 0.0):,.0f}" for found in figures.values())])
    return Table("Where a position's time goes, nanoseconds", ["stage", *figures], rows)


def _notes(settings: dict[str, Any]) -> Sequence[str]:
    return [
        f"Teachers with random weights over {settings['cells']:,} cells; trips of {settings['city']}, in requests of "
        f"{settings['trips']} trips, SEQUENCE mode.",
        "The obvious implementation scores a few trips before each block, with one of torch's threads or all, "
        "whichever was faster; its speed is the median over the blocks. Ratios are to that median.",
        "Computed: positions that were new; the others were found in the table. Rows with the whole history are trips.",
        "The second pass answers from the table alone, bit for bit as the first one did.",
    ]
