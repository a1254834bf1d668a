"""A scorer without a model: its answers are simple arithmetic, and it computes only when the test lets it."""

from __future__ import annotations

import threading

import numpy as np

from shared.errors import InvalidRequest
from shared.teacher_file import TeacherHeader
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import Float16, ScoreQuery
from support.row_fakes import contexts_of
from teacher_server.scorer import Batch, Scores

CELLS = 100
BLOCK_SIZE = 16
HEADER = TeacherHeader(
    architecture={
        "n_layer": 1,
        "n_head": 1,
        "n_embd": 4,
        "block_size": BLOCK_SIZE,
        "vocab_size": CELLS + 3,
        "bias": False,
    },
    tokeniser=Tokeniser(Vocabulary.full(CELLS), None),
    revision="feedc0de",
    provenance={},
)
MASS = 0.5
PATIENCE = 30
"""Seconds after which a gate that nobody opens fails the test instead of hanging it."""


def expected_log_probs(query: ScoreQuery) -> Float16:
    """What `FakeScorer` answers: minus (candidate + sum of its context), in 64ths."""
    sums = np.array([sum(context) for context in contexts_of(query, BLOCK_SIZE - 1)], np.int64)
    return (-(query.candidate_tokens + np.repeat(sums, query.candidate_lengths)) / 64).astype(np.float16)


class FakeScorer:
    """Implements `Scorer[Batch]`; while `hold` was called, a batch waits for `release`."""

    header = HEADER
    device = "cpu"
    compute_dtype = "float32"
    numerics = "fake"
    parameters = 7

    def __init__(self, block_size: int = BLOCK_SIZE) -> None:
        self.costs = np.arange(block_size + 1, dtype=np.int64)
        self.batches: list[Batch] = []
        self.assembled: list[str] = []
        self.failure: Exception | None = None
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

    def check(self, query: ScoreQuery, max_positions: int, max_candidates: int) -> None:
        """See `Scorer`."""
        if query.positions > max_positions:
            raise InvalidRequest(f"candidate_lengths: {query.positions} positions, at most {max_positions}")
        if len(query.candidate_tokens) and int(query.candidate_tokens.max()) >= CELLS:
            raise InvalidRequest(f"candidate_tokens: above {CELLS - 1}")

    def assemble(self, batch: Batch) -> Batch:
        """See `Scorer`."""
        self.assembled.append(threading.current_thread().name)
        return batch

    def score(self, ready: Batch) -> Scores:
        """See `Scorer`."""
        self.batches.append(ready)
        if self._held:
            assert self._gate.acquire(timeout=PATIENCE), "nobody opened the gate"
        if self.failure is not None:
            raise self.failure
        contexts = np.split(ready.tokens, np.cumsum(ready.lengths)[:-1])
        places = zip(ready.scored_row.tolist(), ready.scored_place.tolist(), strict=True)
        sums = np.array([contexts[row][1 : place + 1].sum() for row, place in places])
        log_probs = -(ready.candidates + np.repeat(sums, ready.candidate_lengths)) / 64
        return Scores(log_probs.astype(np.float16), np.where(ready.with_mass, MASS, 0).astype(np.float16))

    def warm_up(self) -> None:
        """See `Scorer`."""
