"""A scorer without a model: its answers are simple arithmetic, and it computes only when the test lets it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from shared.errors import InvalidRequest
from shared.teacher_file import TeacherHeader
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import Float16, ScoreQuery
from teacher_server.scorer import Scores

CELLS = 100
HEADER = TeacherHeader(
    architecture={"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 16, "vocab_size": CELLS + 3, "bias": False},
    tokeniser=Tokeniser(Vocabulary.full(CELLS), None),
    revision="feedc0de",
    provenance={},
)
PATIENCE = 30
"""Seconds after which a gate that nobody opens fails the test instead of hanging it."""


@dataclasses.dataclass(frozen=True, eq=False)
class FakeWork:
    """A work of a given cost; `values` is its answer."""

    cost: int
    positions: int
    values: Float16
    mass: Float16 | None = None


def work(tag: float, cost: int = 1, positions: int = 1) -> FakeWork:
    """A work whose answer is its tag."""
    return FakeWork(cost, positions, np.array([tag], np.float16))


def expected_log_probs(query: ScoreQuery) -> Float16:
    """What `FakeScorer` answers: minus (candidate + sum of the whole history), in 64ths."""
    return (-(query.candidate_tokens + int(query.history_tokens.sum())) / 64).astype(np.float16)


class FakeScorer:
    """Implements `Scorer[FakeWork]`; while `hold` was called, a batch waits for `release`."""

    header = HEADER
    device = "cpu"
    compute_dtype = "float32"
    parameters = 7

    def __init__(self) -> None:
        self.batches: list[list[FakeWork]] = []
        self.failure: Exception | None = None
        self.answers_missing = 0
        self._gate = threading.Semaphore(0)
        self._held = False

    def hold(self) -> None:
        """From now on every batch waits for one `release`."""
        self._held = True

    def release(self, batches: int = 1) -> None:
        """Lets some batches through."""
        self._gate.release(batches)

    def open(self) -> None:
        """Lets everything through from now on."""
        self._held = False
        self._gate.release(1000)

    def check(self, query: ScoreQuery, max_positions: int) -> None:
        """See `Scorer`."""
        if query.positions > max_positions:
            raise InvalidRequest(f"candidate_lengths: {query.positions} positions, at most {max_positions}")
        if len(query.candidate_tokens) and int(query.candidate_tokens.max()) >= CELLS:
            raise InvalidRequest(f"candidate_tokens: above {CELLS - 1}")

    def prepare(self, query: ScoreQuery) -> FakeWork:
        """See `Scorer`."""
        mass = np.full(query.positions, 0.5, np.float16) if query.include_candidate_mass else None
        return FakeWork(len(query.history_tokens) + query.positions, query.positions, expected_log_probs(query), mass)

    def score(self, works: Sequence[FakeWork]) -> list[Scores]:
        """See `Scorer`."""
        self.batches.append(list(works))
        if self._held:
            assert self._gate.acquire(timeout=PATIENCE), "nobody opened the gate"
        if self.failure is not None:
            raise self.failure
        answers = [Scores(work.values, work.mass) for work in works]
        return answers[: len(answers) - self.answers_missing]

    def warm_up(self) -> None:
        """See `Scorer`."""
