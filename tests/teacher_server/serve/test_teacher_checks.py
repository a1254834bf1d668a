"""What a request may ask: what breaks a rule is named, what keeps to it passes."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import InvalidRequest
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.serve import checks
from teacher_server.serve.checks import RequestLimits

BLOCK, EOT = 6, 41


def make_query(mode: HistoryMode, rows: list[list[int]], candidate_counts: list[int], window: int = 0) -> ScoreQuery:
    lengths = np.array([len(row) for row in rows], np.int32)
    counts = np.array(candidate_counts, np.int32)
    history = np.array([token for row in rows for token in row], np.int32)
    return ScoreQuery(mode, history, lengths, np.zeros(counts.sum(), np.int32), counts, window)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (make_query(HistoryMode.WINDOW, [[1, 2], [3, 40]], [1, 1]), r"history_tokens\[3\]: 40 .* 0\.\.39"),
        (make_query(HistoryMode.WINDOW, [[1, -2]], [1]), r"history_tokens\[1\]: -2 .* 0\.\.39"),
        (make_query(HistoryMode.WINDOW, [[1, EOT]], [1]), r"history_tokens\[1\]: 41 is not a cell; cells are 0\.\.39"),
        (make_query(HistoryMode.WINDOW, [[], [1] * 6], [1, 1]), r"history_lengths\[1\]: 6 tokens, at most 5"),
        (make_query(HistoryMode.SEQUENCE, [[1] * 9], [1] * 9, window=6), "window: 6 tokens, at most 5"),
        (make_query(HistoryMode.SEQUENCE, [[1] * 11], [1] * 11), "candidate_lengths: 11 positions, at most 10"),
        (make_query(HistoryMode.WINDOW, [[1]], [21]), "candidate_tokens: 21 candidates, at most 20"),
    ],
)
def test_what_breaks_a_limit_is_named(query: ScoreQuery, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        checks.check(query, RequestLimits(40, EOT, BLOCK - 1, positions=10, candidates=20))


@pytest.mark.parametrize("token", [40, 42, 43, -1])  # PAD, SOT, none at all
def test_candidates_must_be_cells_or_the_end_of_a_trip(token: int) -> None:
    query = make_query(HistoryMode.WINDOW, [[1]], [3])
    query.candidate_tokens[:2] = EOT, token
    with pytest.raises(InvalidRequest, match=rf"candidate_tokens\[1\]: {token} is not a cell, .* EOT is 41"):
        checks.check(query, RequestLimits(40, EOT, BLOCK - 1, positions=10, candidates=20))


def test_a_candidate_may_be_the_end_of_the_trip() -> None:
    query = make_query(HistoryMode.WINDOW, [[1], []], [2, 1])
    query.candidate_tokens[1:] = EOT
    checks.check(query, RequestLimits(40, EOT, BLOCK - 1, positions=10, candidates=20))


@pytest.mark.parametrize("mode", HistoryMode)
def test_requests_at_the_limits_pass(mode: HistoryMode) -> None:
    query = make_query(mode, [[0, 39, 1, 2, 3]], [1] if mode is HistoryMode.WINDOW else [1] * 5)
    checks.check(query, RequestLimits(40, EOT, BLOCK - 1, positions=5, candidates=len(query.candidate_tokens)))
    checks.check(make_query(mode, [], []), RequestLimits(40, EOT, BLOCK - 1, positions=0, candidates=0))
