"""From a request to the contexts that the model must read: ragged numpy arithmetic, no model.

A context is a row of tokens that starts with SOT. WINDOW has one a row and SEQUENCE with a window
one a position, each scored at its end. SEQUENCE with the whole history has one causal row a trip,
scored at every token, and beyond the block size one row a position again.

Contexts are padded on the right to the few lengths of `Buckets`. A context's bucket depends on its own
length alone, which, together with tiles of one fixed shape a bucket, keeps an answer independent of
whatever shares its batch.

Shapes: R contexts, N context tokens, S scored positions with candidates, P all positions of the request.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.errors import InvalidRequest
from shared.vocab import Vocabulary
from shared.wire import HistoryMode, ScoreQuery

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What to compute for one request.

    Attributes:
        tokens: int32 [N], contexts back to back, each starting with SOT.
        lengths: int64 [R].
        scored_row: int64 [S], context of each scored position.
        scored_place: int64 [S], place of its last token in the context.
        position: int64 [S], ascending: which of the request's P positions it is.
    """

    tokens: Int32
    lengths: Int64
    scored_row: Int64
    scored_place: Int64
    position: Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """The padded lengths and the shapes of their tiles.

    Attributes:
        widths: int64 [b], ascending padded lengths; the last is the block size.
        rows: int64 [b], contexts in a tile of each.
    """

    widths: Int64
    rows: Int64

    @classmethod
    def make(cls, block_size: int, smallest: int, per_doubling: int, tile_tokens: int) -> Buckets:
        """Widths 1 + smallest * 2^(i / per_doubling), so that windows of common lengths need no padding.

        Args:
            block_size: longest context.
            smallest: tokens after SOT in the first bucket.
            per_doubling: buckets between a length and its double.
            tile_tokens: padded tokens of a tile; a tile holds at least one context.
        """
        steps = np.arange(1 + per_doubling * int(np.ceil(np.log2(max(block_size / smallest, 1)) + 1)))
        widths = 1 + np.unique(np.floor(smallest * 2.0 ** (steps / per_doubling)).astype(np.int64))
        widths = np.append(widths[widths < block_size], block_size)
        return cls(widths, np.maximum(1, tile_tokens // widths))

    def of(self, lengths: Int64) -> Int64:
        """Bucket of each context length."""
        return np.searchsorted(self.widths, lengths)

    def cost(self, plan: Plan) -> int:
        """Padded tokens of a plan's contexts."""
        return int(self.widths[self.of(plan.lengths)].sum())


def check(query: ScoreQuery, vocabulary: Vocabulary, block_size: int, max_positions: int) -> None:
    """Checks what decoding could not: tokens and limits.

    Raises:
        InvalidRequest: naming the field, the index and the limit.
    """
    _check_tokens("history_tokens", query.history_tokens, vocabulary.cells)
    _check_tokens("candidate_tokens", query.candidate_tokens, vocabulary.cells)
    if query.positions > max_positions:
        raise InvalidRequest(f"candidate_lengths: {query.positions} positions, at most {max_positions} in a request")
    longest = block_size - 1
    if query.window > longest:
        raise InvalidRequest(f"window: {query.window} tokens, at most {longest} fit the teacher's block")
    lengths = query.history_lengths
    if query.mode is HistoryMode.WINDOW and len(lengths) and int(lengths.max()) > longest:
        index = int(np.argmax(lengths > longest))
        raise InvalidRequest(
            f"history_lengths[{index}]: {lengths[index]} tokens, at most {longest} fit the teacher's block"
        )


def plan(query: ScoreQuery, sot: int, block_size: int) -> Plan:
    """The contexts of a checked request; positions without candidates need none."""
    position = np.flatnonzero(query.candidate_lengths)
    if query.mode is HistoryMode.WINDOW:
        starts = ragged.offsets(query.history_lengths)[position]
        return _one_context_each(query.history_tokens, starts, query.history_lengths[position], position, sot)
    before = ragged.positions(query.history_lengths)[position]  # tokens of the trip before this one
    if query.window:
        lengths = np.minimum(before + 1, query.window)
        return _one_context_each(query.history_tokens, position + 1 - lengths, lengths, position, sot)
    return _causal_rows(query, position, before, sot, block_size - 1)


def _one_context_each(history: Int32, starts: Int64, lengths: npt.NDArray, position: Int64, sot: int) -> Plan:
    """One context a position, scored at its end."""
    lengths = lengths.astype(np.int64)
    rows = np.arange(len(position), dtype=np.int64)
    return Plan(_with_sot(history, starts, lengths, sot), lengths + 1, rows, lengths, position)


def _causal_rows(query: ScoreQuery, position: Int64, before: Int64, sot: int, longest: int) -> Plan:
    """One context a trip, up to its last position with candidates; one each for positions beyond `longest` tokens."""
    trip = ragged.rows(query.history_lengths)[position]
    fits = before < longest
    trips, last = _last_of_each(trip[fits])
    starts = np.concatenate([ragged.offsets(query.history_lengths)[trips], position[~fits] + 1 - longest])
    lengths = np.concatenate([before[fits][last] + 1, np.full(np.count_nonzero(~fits), longest)])
    row = np.empty(len(position), np.int64)
    row[fits] = np.searchsorted(trips, trip[fits])
    row[~fits] = len(trips) + np.arange(len(lengths) - len(trips))
    tokens = _with_sot(query.history_tokens, starts, lengths, sot)
    return Plan(tokens, lengths + 1, row, np.where(fits, before + 1, longest), position)


def _last_of_each(ascending: Int64) -> tuple[Int64, Int64]:
    """Distinct values of an ascending array, and the index of the last of each."""
    last = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], np.True_)[: len(ascending)])
    return ascending[last], last


def _with_sot(history: Int32, starts: Int64, lengths: Int64, sot: int) -> Int32:
    """Slices of the history back to back, SOT before each."""
    tokens = np.full(int(lengths.sum()) + len(lengths), sot, np.int32)
    tokens[ragged.positions(lengths + 1) > 0] = history[ragged.slices(starts, lengths)]
    return tokens


def _check_tokens(name: str, tokens: Int32, cells: int) -> None:
    if not len(tokens) or (int(tokens.min()) >= 0 and int(tokens.max()) < cells):
        return
    index = int(np.argmax((tokens < 0) | (tokens >= cells)))
    raise InvalidRequest(f"{name}[{index}]: {tokens[index]} is not a cell; cells are 0..{cells - 1}")
