"""The teacher in the process: what the daemon does with a request, without the daemon."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from benchmarks.common import BenchmarkError
from shared.wire import ScoreQuery
from teacher_server.answers.table import AnswerTable, warm_up
from teacher_server.engine.engine import Engine
from teacher_server.serve import checks
from teacher_server.serve.checks import RequestLimits

Float16 = npt.NDArray[np.float16]


class LocalTeacher:
    """An engine with its table of rows; one request after another.

    Attributes:
        table: the rows.
        seconds: spent in each stage since the start.
    """

    def __init__(self, engine: Engine, cache_mib: int) -> None:
        """Without anything remembered."""
        self.engine = engine
        self.table = AnswerTable(cache_mib * 2**20, engine.costs, engine.served.header.tokeniser.vocabulary.sot)
        self.seconds: dict[str, float] = defaultdict(float)
        warm_up(self.table)

    def score(self, query: ScoreQuery) -> Float16:
        """Log-probabilities of a request's candidates."""
        with self._stage("check"):
            served = self.engine.served
            candidates = len(query.candidate_tokens)
            limits = RequestLimits(served.cells, served.eot, served.longest, query.positions, candidates)
            checks.check(query, limits)
        with self._stage("look up"):
            asked = self.table.ask(query)
        if not asked.is_answered:
            with self._stage("cut"):
                into = np.empty(query.positions, np.int64)
                count, _ = self.table.take(asked, 1 << 62, into, 0)
                batch = self.table.batch(into[:count])
            with self._stage("assemble"):
                ready = self.engine.assemble(batch)
            with self._stage("model"):
                scores = self.engine.score(ready)
            with self._stage("remember"):
                self.table.fill(into[:count], scores)
            with self._stage("collect"):
                self.table.collect(asked)
        if not asked.is_answered:
            raise BenchmarkError("a request was not answered in one batch")
        return asked.log_probs

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
