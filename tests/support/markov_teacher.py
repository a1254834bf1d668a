"""A second teacher, as small as one can be: a table of how likely each token follows another.

As a program it is the daemon's command line with this teacher registered: `python -m support.markov_teacher serve ...`
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np

from shared import ragged, teacher_file
from shared.arrays import Float64
from shared.teacher_file import TeacherHeader
from shared.vocab import Tokeniser
from teacher_server import teachers
from teacher_server.__main__ import main
from teacher_server.engine.config import EngineConfig
from teacher_server.scorer import Batch, Scores, Served

NAME, BLOCK_SIZE = "markov", 32


def write_markov_teacher(path: Path, tokeniser: Tokeniser, seed: int = 0) -> TeacherHeader:
    """A teacher file with a random table, float32 [V, V] of log-probabilities."""
    size = tokeniser.vocabulary.size
    table = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32) * 2
    weights = {"table": table - np.logaddexp.reduce(table, axis=1, keepdims=True)}
    return teacher_file.write(path, weights, {"block_size": BLOCK_SIZE}, tokeniser, {"made_by": "test"}, NAME)


def answer_of(table: Float64, last: int, candidates: np.ndarray) -> Float64:
    """log p of each candidate among the candidates, after a token."""
    row = table[last, candidates]
    return np.asarray(row - np.logaddexp.reduce(row))


@dataclasses.dataclass(frozen=True)
class MarkovScorer:
    """Implements `Scorer[Batch]`: a place's scores follow from its last token."""

    table: Float64
    served: Served

    @property
    def costs(self) -> np.ndarray:
        """A token a context."""
        return np.arange(BLOCK_SIZE + 1)

    def assemble(self, batch: Batch) -> Batch:
        """See `Scorer`."""
        return batch

    def score(self, ready: Batch) -> Scores:
        """See `Scorer`."""
        last = ready.tokens[ragged.offsets(ready.lengths)[ready.scored_row] + ready.scored_place]
        parts = np.split(ready.candidates, np.cumsum(ready.candidate_lengths)[:-1])
        found = [answer_of(self.table, token, part) for token, part in zip(last, parts, strict=True)]
        mass = [np.exp(self.table[token, np.unique(part)]).sum() for token, part in zip(last, parts, strict=True)]
        return Scores(np.concatenate(found).astype(np.float16), np.where(ready.with_mass, mass, 0).astype(np.float16))

    def warm_up(self) -> None:
        """See `Scorer`."""


def load(path: Path, settings: EngineConfig) -> MarkovScorer:
    """See `teachers`."""
    header, weights = teacher_file.read(path)
    numerics = hashlib.sha256(f"markov {header.revision}".encode()).hexdigest()[:16]
    served = Served(header, "cpu", "float32", weights["table"].size, numerics)
    return MarkovScorer(weights["table"].astype(np.float64), served)


if __name__ == "__main__":
    teachers.TEACHERS[NAME] = load
    sys.exit(main())
