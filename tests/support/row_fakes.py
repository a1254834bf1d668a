"""What rows mean, said by brute force: the contexts of a request, one by one, and answers that tell them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from shared.arrays import Float16
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.scorer import Batch, Scores


def number(*parts: object) -> float:
    """A number in (-8, 0] that is another for other parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return -int.from_bytes(digest[:2], "big") / 2**13


def expected(query: ScoreQuery, longest: int) -> tuple[Float16, Float16]:
    """Log-probabilities [K] and masses [P] of `answers` for the contexts that the contract gives the positions."""
    log_probs, masses = [], []
    candidates = np.split(query.candidate_tokens, np.cumsum(query.candidate_lengths)[:-1])
    for context, cells in zip(contexts_of(query, longest), candidates if query.positions else [], strict=True):
        cells = cells.tolist()
        log_probs += [number(context, cells, i) for i in range(len(cells))]
        masses.append(number(context, cells) if cells and query.include_candidate_mass else 0.0)
    return np.array(log_probs, np.float16), np.array(masses, np.float16)


def contexts_of(query: ScoreQuery, longest: int) -> list[list[int]]:
    """Tokens without SOT that each position is scored after."""
    trips = np.split(query.history_tokens, np.cumsum(query.history_lengths)[:-1]) if len(query.history_lengths) else []
    if query.mode is HistoryMode.WINDOW:
        return [trip.tolist() for trip in trips]
    window = query.window or longest
    return [trip[max(0, i + 1 - window) : i + 1].tolist() for trip in trips for i in range(len(trip))]


def answers(batch: Batch) -> Scores:
    """A scorer of a batch: every scored place is answered by `number` of what is in its context up to there."""
    log_probs, masses = [], []
    contexts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
    candidates = np.split(batch.candidates, np.cumsum(batch.candidate_lengths)[:-1])
    rows = zip(batch.scored_row.tolist(), batch.scored_place.tolist(), candidates, batch.with_mass, strict=True)
    for row, place, cells, with_mass in rows:
        context, cells = contexts[row][1 : place + 1].tolist(), cells.tolist()
        log_probs += [number(context, cells, i) for i in range(len(cells))]
        masses.append(number(context, cells) if with_mass else 0.0)
    return Scores(np.array(log_probs, np.float16), np.array(masses, np.float16))


def make_query(
    mode: HistoryMode, histories: Iterable[list[int]], candidates: Iterable[list[int]], **values: object
) -> ScoreQuery:
    """A query from lists: a history a row, candidates a position."""
    histories, candidates = list(histories), list(candidates)
    return ScoreQuery(
        mode,
        np.array([token for row in histories for token in row], np.int32),
        np.array([len(row) for row in histories], np.int32),
        np.array([token for cells in candidates for token in cells], np.int32),
        np.array([len(cells) for cells in candidates], np.int32),
        **values,  # type: ignore[arg-type]
    )


def same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    """Whether tuples of arrays, such as `Kept`, hold the same numbers."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
