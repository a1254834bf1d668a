"""What the serving side knows of the model: a scorer of prepared requests.

`engine.load` makes the real one; tests of the batcher and the service use small fakes.

    query --check--> admitted --prepare--> work --score (model thread)--> Scores
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from shared.teacher_file import TeacherHeader
from shared.wire import ScoreQuery


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The answer to one request with K candidates at P positions.

    Attributes:
        log_probs: float16 [K], renormalised over each position's candidates, laid out as
            the request's candidate_tokens.
        candidate_mass: float16 [P] if the request asked for it, otherwise None.
    """

    log_probs: npt.NDArray[np.float16]
    candidate_mass: npt.NDArray[np.float16] | None


class Work(Protocol):
    """A request made ready for the model."""

    @property
    def cost(self) -> int:
        """Padded tokens that the model computes for it; adds up over works."""

    @property
    def positions(self) -> int:
        """Scored positions of the request."""


WorkT = TypeVar("WorkT", bound=Work)


class Scorer(Protocol[WorkT]):
    """A frozen teacher that scores requests.

    The answer to a request does not depend on the works that it is scored with, not in a
    single bit, so the caller may batch as it likes.
    """

    @property
    def header(self) -> TeacherHeader:
        """Architecture, tokeniser and revision of the weights."""

    @property
    def device(self) -> str:
        """Where the model runs, as torch names it."""

    @property
    def compute_dtype(self) -> str:
        """Arithmetic of the forward pass: float16, bfloat16 or float32."""

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""

    def check(self, query: ScoreQuery, max_positions: int) -> None:
        """Raises `InvalidRequest` naming field, index and limit; any thread."""

    def prepare(self, query: ScoreQuery) -> WorkT:
        """Makes a checked request ready; numpy only, any thread."""

    def score(self, works: Sequence[WorkT]) -> list[Scores]:
        """Scores the works, one answer each, in their order; the model thread only.

        Raises:
            InternalError: the model gave a value that is not finite.
        """

    def warm_up(self) -> None:
        """Runs every shape once, so that the first request is as fast as the rest; the model thread only."""
