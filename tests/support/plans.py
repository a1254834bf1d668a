"""A request's contexts as a batch, in array operations: another way than the table of rows takes.

Shapes: R contexts, N context tokens, S scored positions with candidates, P all positions of the request.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from shared import ragged
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


def plan_of(query: ScoreQuery, sot: int, block_size: int) -> Plan:
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
