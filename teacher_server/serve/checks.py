"""What a request may ask of a teacher: its tokens and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequest
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.batching.config import BatchingConfig
from teacher_server.scorer import Served

Int32 = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """What a teacher accepts.

    Attributes:
        cells: tokens that may be asked for are below it.
        longest: tokens of a window, without SOT.
        positions: scored positions of a request.
        candidates: candidates of a request.
    """

    cells: int
    longest: int
    positions: int
    candidates: int

    @classmethod
    def of(cls, served: Served, settings: BatchingConfig) -> RequestLimits:
        """Those of a teacher with these settings."""
        return cls(served.cells, served.longest, settings.max_request_positions, settings.max_request_candidates)


def check(query: ScoreQuery, limits: RequestLimits) -> None:
    """Checks what decoding could not: tokens and limits.

    Raises:
        InvalidRequest: naming the field, the index and the limit.
    """
    _check_tokens("history_tokens", query.history_tokens, limits.cells)
    _check_tokens("candidate_tokens", query.candidate_tokens, limits.cells)
    candidates = len(query.candidate_tokens)
    if query.positions > limits.positions:
        raise InvalidRequest(f"candidate_lengths: {query.positions} positions, at most {limits.positions} in a request")
    if candidates > limits.candidates:
        raise InvalidRequest(f"candidate_tokens: {candidates} candidates, at most {limits.candidates} in a request")
    if query.window > limits.longest:
        raise InvalidRequest(f"window: {query.window} tokens, at most {limits.longest} fit the teacher's block")
    lengths = query.history_lengths
    if query.mode is HistoryMode.WINDOW and len(lengths) and int(lengths.max()) > limits.longest:
        index = int(np.argmax(lengths > limits.longest))
        raise InvalidRequest(
            f"history_lengths[{index}]: {lengths[index]} tokens, at most {limits.longest} fit the teacher's block"
        )


def _check_tokens(name: str, tokens: Int32, cells: int) -> None:
    if not len(tokens) or int(tokens.view(np.uint32).max()) < cells:  # a negative one is huge
        return
    index = int(np.argmax((tokens < 0) | (tokens >= cells)))
    raise InvalidRequest(f"{name}[{index}]: {tokens[index]} is not a cell; cells are 0..{cells - 1}")
