"""What the serving side knows of the model: a scorer of batches of contexts.

`teachers` chooses one by the model that a teacher file names: `engine/engine.py` makes the LM-TAD's. Tests of the
batcher and the service use small fakes.

    Batch --assemble (any thread)--> ready for the device --score (model thread)--> Scores

Shapes: R rows, each a context, N context tokens, S scored places, K candidates.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from shared.arrays import Int32, Int64
from shared.errors import Unavailable
from shared.teacher_file import TeacherHeader


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What to compute: contexts, the places in them that are scored, and the candidates of each.

    A batch has a row for each context: its tokens, which start with SOT, and the candidates of its scored places.
    Contexts may repeat, with the same or with other candidates.

    Attributes:
        tokens: int32 [N], contexts back to back.
        lengths: int64 [R], tokens with SOT; from 1 to the block size.
        scored_row: int64 [S], ascending: row of each scored place.
        scored_place: int64 [S], its last token's place in the context, ascending within a context.
        candidates: int32 [K], place after place.
        candidate_lengths: int64 [S], all above 0.
        with_mass: bool [S], whether the candidates' total probability is wanted, too.
    """

    tokens: Int32
    lengths: Int64
    scored_row: Int64
    scored_place: Int64
    candidates: Int32
    candidate_lengths: Int64
    with_mass: npt.NDArray[np.bool_]


class ScorerLost(Unavailable):
    """The scorer will never score again in this process, which should end: its device is lost."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The answer to a batch.

    Attributes:
        log_probs: float16 [K], renormalised over each place's candidates.
        candidate_mass: float16 [S], 0 where it is not wanted.
    """

    log_probs: npt.NDArray[np.float16]
    candidate_mass: npt.NDArray[np.float16]


@dataclasses.dataclass(frozen=True)
class Served:
    """What a scorer is.

    Attributes:
        header: architecture, tokeniser and revision of the weights.
        device: where the model runs, as torch names it, and how if that is an accelerator, in brackets.
        compute_dtype: arithmetic of the forward pass: float16, bfloat16 or float32.
        parameters: number of weights; a tied head counts once.
        numerics: digest of the weights and of everything else that an answer's last bits depend on: device, dtype,
            shapes, versions. Answers may be kept for a scorer with the same.
    """

    header: TeacherHeader
    device: str
    compute_dtype: str
    parameters: int
    numerics: str

    @property
    def cells(self) -> int:
        """Tokens that are cells, the first ones of the vocabulary."""
        return self.header.tokeniser.vocabulary.cells

    @property
    def eot(self) -> int:
        """The token that ends a trip, which may be a candidate."""
        return self.header.tokeniser.vocabulary.eot

    @property
    def longest(self) -> int:
        """Tokens of the longest context without SOT."""
        return self.header.block_size - 1


ReadyT = TypeVar("ReadyT")


class Scorer(Protocol[ReadyT]):
    """A frozen teacher that scores batches.

    The scores of a place do not depend on what else is in its batch, not in a single bit, so the caller may
    batch as it likes and remember answers.
    """

    @property
    def served(self) -> Served:
        """What it is."""

    @property
    def costs(self) -> Int64:
        """Padded tokens of a context by its length with SOT: int64 [block size + 1]."""

    def assemble(self, batch: Batch) -> ReadyT:
        """Makes a batch ready for the device; any thread. Raises `ScorerLost` like `score`."""

    def score(self, ready: ReadyT) -> Scores:
        """Scores an assembled batch; the model thread only.

        Raises:
            InternalError: the model gave a value that is not finite.
            ScorerLost: it can score nothing more.
        """

    def warm_up(self) -> None:
        """Runs every shape once, so that the first request is as fast as the rest; the model thread only."""
