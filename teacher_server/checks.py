"""What a request may ask of a teacher: its tokens and its limits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidRequest
from shared.vocab import Vocabulary
from shared.wire import HistoryMode, ScoreQuery

Int32 = npt.NDArray[np.int32]


def check(query: ScoreQuery, vocabulary: Vocabulary, block_size: int, max_positions: int, max_candidates: int) -> None:
    """Checks what decoding could not: tokens and limits.

    Raises:
        InvalidRequest: naming the field, the index and the limit.
    """
    _check_tokens("history_tokens", query.history_tokens, vocabulary.cells)
    _check_tokens("candidate_tokens", query.candidate_tokens, vocabulary.cells)
    if query.positions > max_positions:
        raise InvalidRequest(f"candidate_lengths: {query.positions} positions, at most {max_positions} in a request")
    if len(query.candidate_tokens) > max_candidates:
        raise InvalidRequest(
            f"candidate_tokens: {len(query.candidate_tokens)} candidates, at most {max_candidates} in a request"
        )
    longest = block_size - 1
    if query.window > longest:
        raise InvalidRequest(f"window: {query.window} tokens, at most {longest} fit the teacher's block")
    lengths = query.history_lengths
    if query.mode is HistoryMode.WINDOW and len(lengths) and int(lengths.max()) > longest:
        index = int(np.argmax(lengths > longest))
        raise InvalidRequest(
            f"history_lengths[{index}]: {lengths[index]} tokens, at most {longest} fit the teacher's block"
        )


def _check_tokens(name: str, tokens: Int32, cells: int) -> None:
    if not len(tokens) or int(tokens.view(np.uint32).max()) < cells:  # a negative one is huge
        return
    index = int(np.argmax((tokens < 0) | (tokens >= cells)))
    raise InvalidRequest(f"{name}[{index}]: {tokens[index]} is not a cell; cells are 0..{cells - 1}")
