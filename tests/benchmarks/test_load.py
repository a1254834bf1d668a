"""The load generator's parts that need no server: questions, credit, messages, summaries."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import load, questions
from benchmarks.load import Answered, Credit, Load
from benchmarks.questions import Positions
from shared.errors import ConfigError
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import HistoryMode, decode_query

TWO_TRIPS = Positions(
    cells=np.array([1, 2, 3, 7, 8], np.int32),
    lengths=np.array([3, 2]),
    candidates=np.array([10, 11, 20, 30, 70, 71, 80], np.int32),
    candidate_lengths=np.array([2, 1, 1, 2, 1]),
)


def test_windows_are_cut_at_the_start_of_their_trip() -> None:
    query = TWO_TRIPS.windows(1, 4, window=2)
    assert query.mode is HistoryMode.WINDOW
    assert query.history_lengths.tolist() == [2, 2, 1, 2]
    assert query.history_tokens.tolist() == [1, 2, 2, 3, 7, 7, 8]
    assert query.candidate_lengths.tolist() == [1, 1, 2, 1]
    assert query.candidate_tokens.tolist() == [20, 30, 70, 71, 80]


def test_trips_are_sent_whole() -> None:
    query = TWO_TRIPS.trips(1, 1, window=0)
    assert (query.mode, query.window) == (HistoryMode.SEQUENCE, 0)
    assert query.history_tokens.tolist() == [7, 8]
    assert query.candidate_tokens.tolist() == [70, 71, 80]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), size=st.integers(1, 15))
def test_requests_go_once_through_the_trips(lengths: list[int], size: int) -> None:
    count = sum(lengths)
    positions = Positions(
        np.arange(count, dtype=np.int32), np.array(lengths), np.arange(count, dtype=np.int32), np.ones(count, np.int64)
    )
    windows = list(questions.requests(positions, size, HistoryMode.WINDOW, 1))
    assert all(query.positions == size for query in windows)
    assert len(windows) == count // size
    trips = list(questions.requests(positions, size, HistoryMode.SEQUENCE, 4))
    assert np.concatenate([query.history_tokens for query in trips]).tolist() == list(range(count))
    assert all(size <= query.positions < size + 6 for query in trips[:-1])


def test_random_questions_are_never_the_same() -> None:
    asked = list(itertools.islice(questions.endless(20_000, 64, HistoryMode.WINDOW, 4, seed=1), 3))
    assert all(query.positions == 64 for query in asked)
    assert len({query.history_tokens.tobytes() for query in asked}) == 3


def test_a_lone_request_needs_no_credit_and_others_do() -> None:
    credit = Credit()
    assert credit.allows(2000)
    credit.spend(2000)
    assert not credit.allows(1)
    credit.balance += 2016
    assert credit.allows(16)
    assert not credit.allows(17)
    credit.spend(16)
    assert not credit.allows(0)  # a request without positions spends one
    credit.answered()
    credit.answered()
    assert credit.allows(2000)


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_message_holds_its_question(transport: str) -> None:
    query = TWO_TRIPS.windows(0, 3, 2)
    message = load.encode(query, 9, transport)
    request = pb.StreamScoreRequest.FromString(message.content).request
    if transport == "unary":
        request = pb.ScoreRequest.FromString(message.content)
    decoded = decode_query(request)
    assert (message.id, message.positions, request.request_id) == (9, 3, 9)
    assert decoded.candidate_tokens.tolist() == query.candidate_tokens.tolist()


def test_a_summary_tells_scores_from_refusals() -> None:
    answers = [Answered(10.0, 0.5, 16, "OK"), Answered(11.0, 1.0, 16, "OK"), Answered(11.0, 9.0, 16, "UNAVAILABLE")]
    found = load.summary(answers)
    assert found["codes"] == {"OK": 2, "UNAVAILABLE": 1}
    assert (found["seconds"], found["positions_per_second"], found["latency_ms"]["p50"]) == (2.0, 16.0, 750.0)
    assert load.summary([]) == {"requests": 0, "codes": {}}


def test_whole_history_needs_sequences() -> None:
    with pytest.raises(ConfigError, match="window 0"):
        Load("127.0.0.1:1", Path("store"), window=0)
