"""What a request may ask of a teacher: its tokens and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from shared.arrays import Int32
from shared.errors import InvalidRequest
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.batching.config import BatchingConfig
from teacher_server.scorer import Served


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """What a teacher accepts.

    Attributes:
        cells: tokens of histories are below it, and candidates are, or are `eot`.
        eot: the token that ends a trip.
        longest: tokens of a window, without SOT.
        positions: scored positions of a request.
        candidates: candidates of a request.
    """

    cells: int
    eot: int
    longest: int
    positions: int
    candidates: int

    @classmethod
    def of(cls, served: Served, settings: BatchingConfig) -> RequestLimits:
        """Those of a teacher with these settings."""
        positions, candidates = settings.max_request_positions, settings.max_request_candidates
        return cls(served.cells, served.eot, served.longest, positions, candidates)


def check(query: ScoreQuery, limits: RequestLimits) -> None:
    """Checks what decoding could not: tokens and limits.

    Raises:
        InvalidRequest: naming the field, the index and the limit.
    """
    _check_history(query.history_tokens, limits.cells)
    _check_candidates(query.candidate_tokens, limits.cells, limits.eot)
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


def _check_history(tokens: Int32, cells: int) -> None:
    if _are_cells(tokens, cells):
        return
    index = int(np.argmax(_no_cell(tokens, cells)))
    raise InvalidRequest(f"history_tokens[{index}]: {tokens[index]} is not a cell; cells are 0..{cells - 1}")


def _check_candidates(tokens: Int32, cells: int, eot: int) -> None:
    if _are_cells(tokens, cells):
        return
    wrong = _no_cell(tokens, cells) & (tokens != eot)
    if not wrong.any():
        return
    index = int(np.argmax(wrong))
    raise InvalidRequest(
        f"candidate_tokens[{index}]: {tokens[index]} is not a cell, nor the end of a trip; "
        f"cells are 0..{cells - 1}, EOT is {eot}"
    )


def _are_cells(tokens: Int32, cells: int) -> bool:
    return not len(tokens) or int(tokens.view(np.uint32).max()) < cells  # a negative one is huge


def _no_cell(tokens: Int32, cells: int) -> npt.NDArray[np.bool_]:
    return (tokens < 0) | (tokens >= cells)
