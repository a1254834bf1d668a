"""Part `daemon`: `teacher-server serve` on the device, asked over gRPC, against the same engine in this process.

Both are asked the same requests by turns, cold (nobody has asked them) and warm (the same once more).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import daemon, meters, questions, server
from benchmarks.gpu import clock, teachers
from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from benchmarks.local import Float16, LocalTeacher
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig

IN_FLIGHT = 4
LOG_CHARACTERS = 3000


def run(task: Task, record: Record) -> None:
    """Measures; what the daemon says at its end is kept where anything has failed."""
    store, size = Store(task.store), task.size
    path = teachers.write_wide(task.work, size, store.tokeniser.vocabulary.cells)
    log = task.work / "daemon.log"
    try:
        with log.open("wb") as stream:
            began = time.perf_counter()
            settings = [*teachers.overrides(task.device, size), daemon.remembering(teachers.CACHE_MIB)]
            with daemon.serve(path, *settings, log=stream) as served:
                record.add("start", time.perf_counter() - began, "s", note="from nothing to the first request")
                scorer = teachers.load(path, task.device, size)
                local = teachers.local(scorer)
                trips = questions.of_trips(store, store.trips("train"), 0, size.trips)
                for case in _cases(trips, task):
                    with record.attempt(case[0]):
                        record.need(3)
                        _compare(*case, local, served, record)
                with record.attempt("new states without a pause"):
                    record.need(size.load_seconds + 5)
                    _load(task, served, local, record)
                record.add("memory of the engine here", clock.peak_mib(task.device), "MiB")
                record.add("memory of the daemon's process", meters.tree_rss(served.process) / clock.MIB, "MiB")
    finally:
        _tell(log, record)


Case = tuple[str, int, int, list[ScoreQuery]]
"""Name, clients, requests of one in flight, requests."""


def _cases(trips: questions.Positions, task: Task) -> Iterator[Case]:
    size = task.size
    large = questions.requests(trips, size.large, HistoryMode.SEQUENCE, size.window)
    yield "one client", 1, IN_FLIGHT, list(itertools.islice(large, size.cold_requests))
    begin = size.cold_requests * size.large * 5 // 4 % max(1, len(trips) // 2)
    firsts = range(begin, len(trips) - size.small, size.small)[: 10 * size.cold_requests]
    yield "eight clients", size.clients, 1, [trips.windows(first, size.small, size.window) for first in firsts]


def _compare(
    name: str, clients: int, in_flight: int, queries: list[ScoreQuery], local: LocalTeacher, served: daemon.Daemon,
    record: Record,
) -> None:  # fmt: skip
    positions = sum(query.positions for query in queries)
    answers: list[Sequence[Float16]] = []
    with _clients(served, clients, in_flight) as teachers_there:
        server.ask(teachers_there, [_other(queries[0])])  # the connection is there
        for state in ("cold", "warm"):
            before = meters.scrape(served.metrics)
            seconds, there = _timed(server.ask, teachers_there, queries)
            missed = meters.hit_rate(before, meters.scrape(served.metrics))
            inside, here = _timed(lambda: [local.score(query) for query in queries])
            answers += [there, here]
            record.add(f"{name}, {state}, daemon", positions / seconds, "positions/s")
            record.add(f"{name}, {state}, engine", positions / inside, "positions/s")
            record.add(f"{name}, {state}, daemon ÷ engine", inside / seconds)
            record.detail(f"{name}, {state}", {"positions": positions, "requests": len(queries), "hit rate": missed})
    first, *others = answers
    same = all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    record.add(f"{name}: daemon and engine give the same bits", same)


def _load(task: Task, served: daemon.Daemon, local: LocalTeacher, record: Record) -> None:
    """Requests that nobody has asked before, for some seconds, while the device is watched."""
    size, cells = task.size, task.size.grid[0] * task.size.grid[1]
    made = questions.endless(cells, size.large, HistoryMode.SEQUENCE, size.window, seed=3)
    with _clients(served, 1, IN_FLIGHT) as (client,), clock.Utilisation.watched(task.device) as seen:
        began, asked, waiting = time.perf_counter(), 0, []
        while time.perf_counter() - began < size.load_seconds:
            query = next(made)
            asked += query.positions
            waiting.append(client.submit(query))
            if len(waiting) > 2 * IN_FLIGHT:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
        rate = asked / (time.perf_counter() - began)
    queries = [next(made) for _ in range(max(2, size.cold_requests // 4))]
    seconds, _ = _timed(lambda: [local.score(query) for query in queries])
    inside = sum(query.positions for query in queries) / seconds
    record.add("every state new", rate, "positions/s", baseline=("the engine in the process", inside))
    if seen.share is not None:
        record.add("every state new, device busy", seen.share, note="share of the time with a kernel, by the driver")
        record.detail("device busy, percent", seen.percent)


@contextlib.contextmanager
def _clients(served: daemon.Daemon, count: int, in_flight: int) -> Iterator[list[GrpcTeacher]]:
    with contextlib.ExitStack() as stack:
        config = ClientConfig(max_in_flight=in_flight)
        yield [stack.enter_context(contextlib.closing(GrpcTeacher(served.address, config))) for _ in range(count)]


def _other(query: ScoreQuery) -> ScoreQuery:
    """A request of one position that has little to do with the query."""
    one = np.ones(1, np.int32)
    return ScoreQuery(HistoryMode.WINDOW, query.candidate_tokens[:1], one, query.candidate_tokens[:1], one)


def _tell(log: Path, record: Record) -> None:
    text = log.read_text(encoding="utf-8", errors="replace")
    record.detail("daemon's log", text[-LOG_CHARACTERS:])


def _timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found
