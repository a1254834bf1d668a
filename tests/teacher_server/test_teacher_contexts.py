"""Contexts against one window after another, by the wire contract's definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ragged
from shared.errors import InvalidRequest
from shared.vocab import Vocabulary
from shared.wire import HistoryMode, ScoreQuery
from teacher_server import contexts
from teacher_server.contexts import Buckets

SOT = 99
BLOCK = 6


def make_query(mode: HistoryMode, rows: list[list[int]], candidate_counts: list[int], window: int = 0) -> ScoreQuery:
    lengths = np.array([len(row) for row in rows], np.int32)
    counts = np.array(candidate_counts, np.int32)
    history = np.array([token for row in rows for token in row], np.int32)
    return ScoreQuery(mode, history, lengths, np.zeros(counts.sum(), np.int32), counts, window)


def expected_context(query: ScoreQuery, position: int) -> list[int]:
    """SOT and the tokens that the contract puts before the position, cut to the block."""
    if query.mode is HistoryMode.WINDOW:
        start = ragged.offsets(query.history_lengths)[position]
        return [SOT, *query.history_tokens[start : start + query.history_lengths[position]].tolist()]
    row, place = ragged.rows(query.history_lengths)[position], ragged.positions(query.history_lengths)[position]
    start = ragged.offsets(query.history_lengths)[row]
    before = query.history_tokens[start : start + place + 1].tolist()
    return [SOT, *before[-(query.window or BLOCK - 1) :]]


@st.composite
def queries(draw: st.DrawFn) -> ScoreQuery:
    mode = draw(st.sampled_from(HistoryMode))
    longest = BLOCK - 1 if mode is HistoryMode.WINDOW else 14
    rows = draw(st.lists(st.lists(st.integers(0, 50), max_size=longest), max_size=6))
    positions = len(rows) if mode is HistoryMode.WINDOW else sum(map(len, rows))
    counts = draw(st.lists(st.integers(0, 3), min_size=positions, max_size=positions))
    window = 0 if mode is HistoryMode.WINDOW else draw(st.integers(0, BLOCK - 1))
    return make_query(mode, rows, counts, window)


@given(queries())
def test_every_position_sees_its_context(query: ScoreQuery) -> None:
    plan = contexts.plan(query, SOT, BLOCK)
    rows = [part.tolist() for part in np.split(plan.tokens, ragged.offsets(plan.lengths)[1:-1])]
    assert plan.position.tolist() == np.flatnonzero(query.candidate_lengths).tolist()
    for position, row, place in zip(plan.position, plan.scored_row, plan.scored_place, strict=True):
        assert rows[row][: place + 1] == expected_context(query, position)


@given(queries())
def test_nothing_is_computed_in_vain(query: ScoreQuery) -> None:
    plan = contexts.plan(query, SOT, BLOCK)
    assert sorted(set(plan.scored_row.tolist())) == list(range(len(plan.lengths)))
    for row, length in enumerate(plan.lengths):
        assert plan.scored_place[plan.scored_row == row].max() == length - 1
    assert len(plan.lengths) == 0 or plan.lengths.max() <= BLOCK


def test_a_trip_is_one_causal_row_until_the_block_is_full() -> None:
    plan = contexts.plan(make_query(HistoryMode.SEQUENCE, [list(range(8))], [1] * 8), SOT, BLOCK)
    assert plan.lengths.tolist() == [6, 6, 6, 6]
    assert plan.scored_row.tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert plan.scored_place.tolist() == [1, 2, 3, 4, 5, 5, 5, 5]
    assert plan.tokens[6:].tolist() == [SOT, 1, 2, 3, 4, 5, SOT, 2, 3, 4, 5, 6, SOT, 3, 4, 5, 6, 7]


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 8), st.integers(1, 5000))
def test_buckets_hold_every_context(block: int, smallest: int, per_doubling: int, tile_tokens: int) -> None:
    buckets = Buckets.make(block, smallest, per_doubling, tile_tokens)
    lengths = np.arange(1, block + 1)
    widths = buckets.widths[buckets.of(lengths)]
    assert np.all(np.diff(buckets.widths) > 0)
    assert buckets.widths[-1] == block
    assert np.all(widths >= lengths)
    assert np.all(buckets.rows >= 1)
    assert np.all(buckets.rows * buckets.widths <= np.maximum(tile_tokens, buckets.widths))


def test_windows_of_common_lengths_need_no_padding() -> None:
    buckets = Buckets.make(256, smallest=4, per_doubling=2, tile_tokens=512)
    lengths = 1 + np.array([4, 8, 16, 32, 64, 128])
    assert buckets.widths[buckets.of(lengths)].tolist() == lengths.tolist()


def test_cost_is_padded_tokens() -> None:
    buckets = Buckets.make(64, smallest=4, per_doubling=1, tile_tokens=512)
    plan = contexts.plan(make_query(HistoryMode.WINDOW, [[1], [1] * 4, [1] * 5, [2]], [1, 1, 1, 0]), SOT, 64)
    assert buckets.cost(plan) == 5 + 5 + 9


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (make_query(HistoryMode.WINDOW, [[1, 2], [3, 40]], [1, 1]), r"history_tokens\[3\]: 40 .* 0\.\.39"),
        (make_query(HistoryMode.WINDOW, [[1, -2]], [1]), r"history_tokens\[1\]: -2 .* 0\.\.39"),
        (make_query(HistoryMode.WINDOW, [[], [1] * 6], [1, 1]), r"history_lengths\[1\]: 6 tokens, at most 5"),
        (make_query(HistoryMode.SEQUENCE, [[1] * 9], [1] * 9, window=6), "window: 6 tokens, at most 5"),
        (make_query(HistoryMode.SEQUENCE, [[1] * 11], [1] * 11), "candidate_lengths: 11 positions, at most 10"),
    ],
)
def test_what_breaks_a_limit_is_named(query: ScoreQuery, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        contexts.check(query, Vocabulary.full(40), BLOCK, max_positions=10)


def test_candidates_must_be_cells() -> None:
    query = make_query(HistoryMode.WINDOW, [[1]], [2])
    query.candidate_tokens[1] = 40  # PAD
    with pytest.raises(InvalidRequest, match=r"candidate_tokens\[1\]: 40 is not a cell"):
        contexts.check(query, Vocabulary.full(40), BLOCK, max_positions=10)


@pytest.mark.parametrize("mode", HistoryMode)
def test_requests_at_the_limits_pass(mode: HistoryMode) -> None:
    query = make_query(mode, [[0, 39, 1, 2, 3]], [1] if mode is HistoryMode.WINDOW else [1] * 5)
    contexts.check(query, Vocabulary.full(40), BLOCK, max_positions=5)
    contexts.check(make_query(mode, [], []), Vocabulary.full(40), BLOCK, max_positions=0)
