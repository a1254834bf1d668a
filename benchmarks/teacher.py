"""Section `teacher`: positions a second of windowed scoring, six ways (`ways.py`).

A round gives every way the trips of fresh requests; the naive ways get the first few trips of them. The cached ways
have seen other trips before: their hit rate is that of trips that are new to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import cities
from benchmarks.common import BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.ways import NAIVE, Turn, Way, fastest_threads, load_ways
from shared import teacher_file
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.store import Store, Trips
from shared.wire import ScoreQuery, ScoreReply, encode_query, encode_reply
from student_trainer.data.batch import build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.query import build_query
from student_trainer.prepare.config import GridConfig
from student_trainer.train.config import DataConfig
from teacher_server import engine
from teacher_server.cache import StateCache
from teacher_server.config import EngineConfig
from teacher_server.model import LMTAD, Architecture

CITY, GRID = "sf_taxi", GridConfig(cell_size=0.0009, vocabulary="full")
"""20,010 cells: a small vocabulary for a full grid, so that the full softmax is not made dearer than it is."""
FRAME_BYTES = 5
"""gRPC's prefix of a message."""
ROUNDING = 2e-3
"""Answers of the engine are float16."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        windows: lengths of the teacher's context.
        n_layer, n_embd: of the teacher.
        rounds: how often every way has its turn.
        requests: of `trips` trips each, a round.
        naive_trips: trips of the first request that the naive ways score.
        warm_trips: trips that the cached ways see before.
        in_flight: requests under way to the server at once.
    """

    windows: tuple[int, ...] = (4, 8)
    n_layer: int = 4
    n_embd: int = 256
    rounds: int = 5
    requests: int = 8
    trips: int = 64
    naive_trips: int = 8
    warm_trips: int = 20_000
    in_flight: int = 4

    @property
    def block(self) -> int:
        """Trips of a round."""
        return self.trips * self.requests


QUICK = Size(windows=(4,), n_layer=2, n_embd=32, rounds=2, requests=2, trips=16, naive_trips=3, warm_trips=64)


class Questions:
    """Queries about the trips of a store, as a trainer asks them: SEQUENCE with a window."""

    def __init__(self, store: Store, window: int) -> None:
        self._network, self._distill = RoadNetwork.load(store), DistillConfig(window=window)

    def about(self, trips: Trips, chosen: npt.NDArray[np.int64], trips_a_request: int) -> list[ScoreQuery]:
        """The queries about the chosen trips."""
        parts = [chosen[i : i + trips_a_request] for i in range(0, len(chosen), trips_a_request)]
        top_k = DataConfig().candidate_top_k
        return [build_query(build_batch(self._network, trips, p, top_k), self._network, self._distill) for p in parts]


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the ways disagree."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = _write_teacher(options.work / "teacher.safetensors", store, size)
    figures = {str(window): _measure(store, teacher, window, size) for window in size.windows}
    settings = {
        "store": store.fingerprint,
        "city": Path(store.manifest["settings"]["raw"]).name,
        "roads": store.manifest["statistics"]["roads"],
        "cells": store.tokeniser.vocabulary.cells,
        **dataclasses.asdict(size),
    }
    tables = [_table(window, found) for window, found in figures.items()]
    return Result("teacher", "The teacher's speed", settings, figures, tables, _notes(settings, figures))


def _write_teacher(path: Path, store: Store, size: Size) -> Path:
    """A teacher of the store's vocabulary with random weights: speed does not depend on them."""
    architecture = Architecture(
        n_layer=size.n_layer,
        n_head=4,
        n_embd=size.n_embd,
        block_size=256,
        vocab_size=store.tokeniser.vocabulary.size,
        bias=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = LMTAD(architecture).weights()
    teacher_file.write(path, weights, architecture.to_dict(), store.tokeniser, {"made_by": "benchmarks, random"})
    return path


def _measure(store: Store, teacher: Path, window: int, size: Size) -> dict[str, Any]:
    """Warms up, plays the rounds, compares the answers: the figures of one window."""
    questions, fresh = Questions(store, window), store.trips("val")
    with contextlib.ExitStack() as stack:
        scorer = engine.load(teacher, EngineConfig())
        ways = load_ways(stack, teacher, scorer, size.in_flight)
        ways = _warm_up(ways, questions, store.trips("train"), size)
        lookups, hits = _counts(scorer.cache)
        rounds = []
        for number in range(size.rounds):
            chosen = (number * size.block + np.arange(size.block)) % len(fresh)
            all_of_it = questions.about(fresh, chosen, size.trips)
            few = questions.about(fresh, chosen[: size.naive_trips], size.naive_trips)
            rounds.append({way.name: way.turn(few if way.is_naive else all_of_it) for way in rotated(ways, number)})
        lookups, hits = np.subtract(_counts(scorer.cache), (lookups, hits)).tolist()
    positions = sum(turns["engine_cached"].positions for turns in rounds)
    return {
        "naive_threads": {way.name: way.threads for way in ways if way.is_naive},
        "ways": {way.name: _figures(way.name, rounds) for way in ways},
        "cache": {"distinct_share": lookups / positions, "hit_rate": hits / lookups},
        "wire_bytes_per_position": _wire_bytes(all_of_it[0], rounds[-1]["server"].answers[0]),
        "agreement": _compare(rounds),
    }


def _counts(cache: StateCache | None) -> tuple[int, int]:
    """Contexts looked up and found since the start; a request's equal contexts count once."""
    assert cache is not None, "the engine has a cache by default"
    return cache.lookups, cache.hits


def _warm_up(ways: Sequence[Way], questions: Questions, trips: Trips, size: Size) -> list[Way]:
    """Other trips to every way, many to the cached ones; to the naive ones their best number of threads."""
    seen = np.arange(min(size.warm_trips, len(trips)))
    few = questions.about(trips, seen[: size.naive_trips], size.naive_trips)
    for start in range(0, len(seen), size.block):
        queries = questions.about(trips, seen[start : start + size.block], size.trips)
        for way in ways:
            if way.cached:
                way.turn(queries)
    for way in ways:
        way.turn(few)
    return [fastest_threads(way, few) if way.is_naive else way for way in ways]


def _figures(name: str, rounds: Sequence[dict[str, Turn]]) -> dict[str, Any]:
    """Medians over the rounds; ratios within each round."""
    turns = [turns[name] for turns in rounds]
    speed = {way: [turns[way].positions / turns[way].seconds for turns in rounds] for way in rounds[0]}
    ratios = {
        base: spread([mine / other for mine, other in zip(speed[name], speed[base], strict=True)])
        for base in ("window_by_window", "trip_at_once", "engine", "engine_cached")
    }
    return {
        "positions_per_second": spread(speed[name]),
        "ratio_to": ratios,
        "cpu_seconds_per_1000": statistics.median(1000 * turn.cpu / turn.positions for turn in turns),
        "server_cpu_seconds_per_1000": statistics.median(1000 * turn.server_cpu / turn.positions for turn in turns),
        "positions": sum(turn.positions for turn in turns),
    }


def _wire_bytes(query: ScoreQuery, log_probs: npt.NDArray[np.float16]) -> dict[str, float]:
    """Messages of a request and its answer with gRPC's prefix, without HTTP/2's frames."""
    reply = ScoreReply(log_probs, None, "0" * 16, 10_000, 100_000)
    question = pb.StreamScoreRequest(request=encode_query(query, 1000)).ByteSize()
    answer = pb.StreamScoreResponse(request_id=1000, response=encode_reply(reply, 1000)).ByteSize()
    return {
        "request": (question + FRAME_BYTES) / query.positions,
        "response": (answer + FRAME_BYTES) / query.positions,
        "candidates": len(query.candidate_tokens) / query.positions,
    }


def _compare(rounds: Sequence[dict[str, Turn]]) -> dict[str, Any]:
    """How far the ways agree.

    Raises:
        BenchmarkError: the naive ways differ from the engine by more than rounding, or the engine's ways at all.
    """
    largest = 0.0
    for turns in rounds:
        mine = turns["engine"].answers
        for way in ("engine_cached", "server", "server_cached"):
            if not all(map(np.array_equal, mine, turns[way].answers)):
                raise BenchmarkError(f"{way} and engine gave different answers to the same requests")
        for way in NAIVE:
            (theirs,) = turns[way].answers
            first = mine[0][: len(theirs)].astype(np.float32)
            largest = max(largest, float(np.abs(first - theirs).max()))
            if not np.allclose(first, theirs, rtol=ROUNDING, atol=ROUNDING):
                raise BenchmarkError(f"{way} and engine differ by {largest:.2g} in a log-probability")
    return {"largest_difference_to_naive": largest, "engine_and_server_same_bits": True}


def _table(window: str, found: dict[str, Any]) -> Table:
    rows = []
    for name, way in found["ways"].items():
        speed, server_cpu = way["positions_per_second"]["median"], way["server_cpu_seconds_per_1000"]
        ratios = [f"{way['ratio_to'][base]['median']:.3g}" for base in NAIVE]
        cpu = [f"{way['cpu_seconds_per_1000']:.3f}", f"{server_cpu:.3f}" if server_cpu else ""]
        rows.append([name, f"{speed:,.0f}", *ratios, *cpu])
    header = [
        "way",
        "positions/s",
        "ratio to window by window",
        "ratio to trip at once",
        "CPU s / 1,000",
        "server CPU s / 1,000",
    ]
    return Table(f"window {window}", header, rows)


def _notes(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    notes = [
        f"Teacher of {settings['n_layer']} layers of {settings['n_embd']} over {settings['cells']:,} cells; contexts "
        f"of {settings['city']}; {settings['rounds']} rounds by turns, medians; ratios are taken within a round.",
        f"The naive ways score the first {settings['naive_trips']} trips of a round, with one of torch's threads or "
        f"all, whichever was faster; the others score {settings['requests']} requests of {settings['trips']} trips.",
        f"The cached ways had seen {settings['warm_trips']:,} other trips; the trips measured were new to them.",
        "CPU: processor seconds for 1,000 positions, of the asking process and of the server's.",
    ]
    for window, found in figures.items():
        cache, wire, agreement = found["cache"], found["wire_bytes_per_position"], found["agreement"]
        notes.append(
            f"Window {window}: {cache['distinct_share']:.0%} of a request's windows are distinct, "
            f"{cache['hit_rate']:.1%} of these were in the cache; on the wire {wire['request']:.1f} bytes a position "
            f"there and {wire['response']:.1f} back for {wire['candidates']:.2f} candidates, without HTTP/2's frames; "
            f"largest difference to the naive answers {agreement['largest_difference_to_naive']:.1g}; engine and "
            "server gave the same bits."
        )
    return notes
