"""The ways to ask a teacher that section `teacher` compares.

window_by_window, trip_at_once    in the process, full softmax (naive.py)
engine, engine_cached             this engine in the process, one request after another
server, server_cached             the same engine behind gRPC, several requests in flight on one stream
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil

from benchmarks import naive
from benchmarks.common import REPOSITORY, BenchmarkError, torch_threads
from shared import teacher_file
from shared.wire import ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from teacher_server import engine, model
from teacher_server.config import EngineConfig
from teacher_server.engine import Engine

Answers = list[npt.NDArray[Any]]
"""Log-probabilities of each request's candidates."""
NAIVE = ("window_by_window", "trip_at_once")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one way took for a round's requests.

    Attributes:
        positions: scored.
        seconds: wall clock.
        cpu, server_cpu: seconds of processor time of this process, and of the server's.
        answers: log-probabilities of every request's candidates.
    """

    positions: int
    seconds: float
    cpu: float
    server_cpu: float
    answers: Answers


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to score.

    Attributes:
        name: its key in the figures.
        score: scores queries.
        cached: whether it remembers what it has computed.
        threads: of one operation of torch in this process; the engine computes tiles in threads of its own.
        server: the process that computes, if not this one.
    """

    name: str
    score: Callable[[Sequence[ScoreQuery]], Answers]
    cached: bool = False
    threads: int = 1
    server: psutil.Process | None = None

    @property
    def is_naive(self) -> bool:
        """Whether it is so slow that it gets a few trips only."""
        return self.name in NAIVE

    def turn(self, queries: Sequence[ScoreQuery]) -> Turn:
        """Scores the queries by the clock."""
        with torch_threads(self.threads):
            server, cpu, start = self._server_cpu(), time.process_time(), time.perf_counter()
            answers = self.score(queries)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        positions = sum(query.positions for query in queries)
        return Turn(positions, seconds, cpu, self._server_cpu() - server, answers)

    def _server_cpu(self) -> float:
        return sum(self.server.cpu_times()[:2]) if self.server is not None else 0.0


def fastest_threads(way: Way, queries: Sequence[ScoreQuery]) -> Way:
    """The way with one thread or with all cores, whichever takes less time."""
    tried = [dataclasses.replace(way, threads=threads) for threads in (1, os.cpu_count() or 1)]
    return min(tried, key=lambda trial: min(trial.turn(queries).seconds for _ in range(3)))


def load_ways(stack: contextlib.ExitStack, teacher: Path, cached: Engine, in_flight: int) -> list[Way]:
    """All of them, ready.

    Args:
        stack: ends the servers.
        teacher: the teacher file.
        cached: an engine of it, whose cache the caller reads.
        in_flight: requests under way to a server at once.
    """
    plain = engine.load(teacher, EngineConfig(cache_mib=0))
    header, weights = teacher_file.read(teacher)
    network, sot = model.load(header, weights), header.tokeniser.vocabulary.sot
    ask, process = stack.enter_context(_served(teacher, in_flight, "engine.cache_mib=0"))
    ask_cached, process_cached = stack.enter_context(_served(teacher, in_flight))
    return [
        Way("window_by_window", lambda queries: [naive.window_by_window(network, q, sot) for q in queries]),
        Way("trip_at_once", lambda queries: [naive.trip_at_once(network, q, sot) for q in queries]),
        Way("engine", lambda queries: [_score(plain, q) for q in queries]),
        Way("engine_cached", lambda queries: [_score(cached, q) for q in queries], cached=True),
        Way("server", ask, server=process),
        Way("server_cached", ask_cached, server=process_cached, cached=True),
    ]


def _score(scorer: Engine, query: ScoreQuery) -> npt.NDArray[Any]:
    """What the service does with a request, without the service."""
    scorer.check(query, query.positions)
    (scores,) = scorer.score([scorer.prepare(query)])
    return scores.log_probs


@contextlib.contextmanager
def _served(
    teacher: Path, in_flight: int, *overrides: str
) -> Iterator[tuple[Callable[[Sequence[ScoreQuery]], Answers], psutil.Process]]:
    """A daemon: how to ask it, and its process."""
    command = [sys.executable, "-m", "teacher_server", "serve", "--log-level", "warning", "--teacher", str(teacher)]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "off", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as daemon:
        assert daemon.stdout is not None
        try:
            ready = daemon.stdout.readline()  # printed once it serves; empty if it ended instead
            if not ready:
                raise BenchmarkError("the teacher daemon did not start; its log is above")
            client = GrpcTeacher(json.loads(ready)["listening"], ClientConfig(max_in_flight=in_flight))
            with contextlib.closing(client):
                yield lambda queries: _ask(client, queries), psutil.Process(daemon.pid)
        finally:
            daemon.terminate()


def _ask(client: GrpcTeacher, queries: Sequence[ScoreQuery]) -> Answers:
    futures = [client.submit(query) for query in queries]
    return [future.result().log_probs for future in futures]
