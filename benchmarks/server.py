"""Section `server`: what the network and the daemon take from the engine.

    engine    in the process, with the same table of rows, one request after another
    daemon    the same requests over the daemon's stream

Both are asked about the same trips, block by block and by turns, and remember alike: what one has seen before a
block, the other has. One client asks with large requests, several in flight, as a trainer does; eight ask with small
ones, one in flight each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import cities, questions
from benchmarks.common import BenchmarkError, Options, Result, Table, spread
from benchmarks.daemon import remembering, serve
from benchmarks.local import Float16, LocalTeacher
from benchmarks.teacher import CITY, GRID
from benchmarks.weights import write_teacher
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from teacher_server.engine import engine
from teacher_server.engine.config import EngineConfig


@dataclasses.dataclass(frozen=True)
class Case:
    """Who asks.

    Attributes:
        name: its key in the figures.
        clients: each with a stream of its own.
        positions: of a request.
        in_flight: requests of a client under way.
        mode: of the requests.
        requests: in a block, of all clients together.
    """

    name: str
    clients: int
    positions: int
    in_flight: int
    mode: HistoryMode
    requests: int


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        n_layer, n_embd: of the teacher.
        cases: who asks.
        blocks: measured, one after another.
        window: cells of history.
        cache_mib: what both remember; 0 is measured, too.
    """

    n_layer: int = 4
    n_embd: int = 256
    cases: tuple[Case, ...] = (
        Case("one client, 2,000 positions", 1, 2000, 4, HistoryMode.SEQUENCE, 12),
        Case("eight clients, 16 positions", 8, 16, 1, HistoryMode.WINDOW, 480),
    )
    blocks: int = 5
    window: int = 4
    cache_mib: int = 256


QUICK = Size(
    2,
    32,
    (
        Case("one client, 2,000 positions", 1, 200, 2, HistoryMode.SEQUENCE, 2),
        Case("eight clients, 16 positions", 2, 4, 1, HistoryMode.WINDOW, 8),
    ),
    blocks=2,
)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if engine and daemon disagree in a bit."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = write_teacher(options.work / "server_teacher.safetensors", store, size.n_layer, size.n_embd)
    figures = {
        f"{case.name}, {'remembering' if mib else 'remembering nothing'}": _measure(store, teacher, case, size, mib)
        for case in size.cases
        for mib in (size.cache_mib, 0)
    }
    settings = {**cities.facts(store), "cells": store.tokeniser.vocabulary.cells, **dataclasses.asdict(size)}
    settings["cases"] = [case.name for case in size.cases]
    return Result("server", "Behind the server", settings, figures, [_table(figures)], _notes(size))


def _measure(store: Store, path: Path, case: Case, size: Size, mib: int) -> dict[str, Any]:
    requests = _requests(store, case, size)
    local = LocalTeacher(engine.load(path, EngineConfig()), mib)
    blocks: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(serve(path, remembering(mib)))
        config = ClientConfig(max_in_flight=case.in_flight)
        clients = [
            stack.enter_context(contextlib.closing(GrpcTeacher(daemon.address, config))) for _ in range(case.clients)
        ]
        for number in range(size.blocks + 1):
            block = [next(requests) for _ in range(case.requests)]
            found = {"positions": float(sum(query.positions for query in block))}
            answers: dict[str, list[Float16]] = {}
            for way in ("engine", "daemon") if number % 2 else ("daemon", "engine"):
                cpu, start = _cpu(daemon.process), time.perf_counter()
                answers[way] = ask(clients, block) if way == "daemon" else [local.score(query) for query in block]
                found[way] = time.perf_counter() - start
                found[f"{way}_server_cpu"] = _cpu(daemon.process) - cpu
            if not all(map(np.array_equal, answers["engine"], answers["daemon"])):
                raise BenchmarkError("engine and daemon gave different answers to the same requests")
            blocks.append(found)
    measured = blocks[1:]  # the first one warms up both
    return {
        "engine_positions_per_second": spread([block["positions"] / block["engine"] for block in measured]),
        "daemon_positions_per_second": spread([block["positions"] / block["daemon"] for block in measured]),
        "ratio": spread([block["engine"] / block["daemon"] for block in measured]),
        "ratio_of_sums": sum(b["engine"] for b in measured) / sum(b["daemon"] for b in measured),
        "server_cpu_ms_per_request": spread([1000 * block["daemon_server_cpu"] / case.requests for block in measured]),
        "blocks": blocks,
    }


def _requests(store: Store, case: Case, size: Size) -> Iterator[ScoreQuery]:
    """Requests about trips that nobody has asked about."""
    needed = case.requests * (size.blocks + 1)
    asked = questions.of_trips(store, store.trips("train"))
    found = list(itertools.islice(questions.requests(asked, case.positions, case.mode, size.window), needed))
    if len(found) < needed:
        raise BenchmarkError(
            f"{store.path} has training trips for {len(found):,} requests of {case.positions:,} positions, and "
            f"{needed:,} fresh ones are asked; name a store with more trips, or leave --store out"
        )
    return iter(found)


def ask(clients: Sequence[GrpcTeacher], block: Sequence[ScoreQuery]) -> list[Float16]:
    """The answers, in order; every client asks the next request as soon as it may have another one in flight."""
    if len(clients) == 1:
        futures = [clients[0].submit(query) for query in block]
        return [future.result().log_probs for future in futures]
    todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for i in [*range(len(block)), *[None] * len(clients)]:
        todo.put(i)
    answers: dict[int, Float16] = {}

    def work(client: GrpcTeacher) -> None:
        while (i := todo.get()) is not None:
            answers[i] = client.submit(block[i]).result().log_probs

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[i] for i in range(len(block))]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _table(figures: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{found['engine_positions_per_second']['median']:,.0f}",
            f"{found['daemon_positions_per_second']['median']:,.0f}",
            f"{found['ratio']['median']:.2f}",
            f"{found['ratio_of_sums']:.2f}",
            f"{found['server_cpu_ms_per_request']['median']:.2f}",
        ]
        for name, found in figures.items()
    ]
    header = [
        "who asks",
        "engine, positions/s",
        "daemon, positions/s",
        "ratio",
        "ratio of sums",
        "server CPU ms / request",
    ]
    return Table("Daemon against engine", header, rows)


def _notes(size: Size) -> list[str]:
    return [
        f"Teacher of {size.n_layer} layers of {size.n_embd}, window {size.window}; {size.blocks} blocks of fresh "
        "trips; a ratio is the engine's time over the daemon's for the same block, the median over the blocks.",
        "The engine is called with one request after another; the daemon merges what several clients ask.",
        "Clients, their interpreter and the daemon share the machine's cores. All answers had the same bits.",
    ]
