"""Any bytes in any field, and any bytes in place of a message, to a daemon with a real model: it says no, and lives."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from conftest import RunningTeacher, start_teacher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scrapes import samples, wait_until

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.serve.interceptors import SERVICE

pytestmark = pytest.mark.integration

CELLS, LONGEST = 40, 15
MAX_BYTES, MAX_POSITIONS, MAX_CANDIDATES = 4096, 50, 120
GAUGES = (
    "teacher_in_flight_requests",
    "teacher_queue_requests",
    "teacher_queue_positions",
    "teacher_open_streams",
    "teacher_credit_positions",
)
WORST_GROWTH = 64 * 2**20
"""Bytes that the daemon may gain on small messages that claim to be large; warm caches and arenas included."""

bounded = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Iterator[RunningTeacher]:
    limits = (
        f"max_message_bytes={MAX_BYTES}",
        f"batching.max_request_positions={MAX_POSITIONS}",
        f"batching.max_request_candidates={MAX_CANDIDATES}",
    )
    with start_teacher(tiny_teacher, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def channel(teacher: RunningTeacher) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(teacher.address) as opened:
        yield opened


GOOD = wire.encode_query(
    ScoreQuery(
        HistoryMode.WINDOW,
        np.array([1, 2, 3, 4, 5], np.int32),
        np.array([3, 0, 2], np.int32),
        np.array([6, 7, 8, 9], np.int32),
        np.array([2, 1, 1], np.int32),
    ),
    request_id=2**64 - 1,
)


@pytest.fixture(autouse=True)
def lives_on(teacher: RunningTeacher, channel: grpc.Channel) -> Iterator[None]:
    """Around each test: the same bits for a good request before and after, and nothing left under way."""
    stub = rpc.TeacherServiceStub(channel)
    before = stub.Score(GOOD, timeout=60).log_probs
    yield
    assert stub.Score(GOOD, timeout=60).log_probs == before
    wait_until(lambda: not any(samples(teacher.metrics)[name, ()] for name in GAUGES))
    counts = samples(teacher.metrics)
    failed = [labels for (name, labels) in counts if name == "teacher_requests_total" and "INTERNAL" in labels]
    assert not sum(counts["teacher_requests_total", labels] for labels in failed)
    assert teacher.process.poll() is None


def packed(values: st.SearchStrategy[int], **sizes: Any) -> st.SearchStrategy[bytes]:
    return st.lists(values, **sizes).map(lambda numbers: np.array(numbers, np.int32).tobytes())


int32 = st.integers(-(2**31), 2**31 - 1)
token = st.one_of(st.integers(0, CELLS - 1), st.sampled_from([-1, CELLS, CELLS + 2, 2**31 - 1, -(2**31)]), int32)
length = st.one_of(st.integers(0, 4), st.sampled_from([-1, LONGEST, LONGEST + 1, 2**31 - 1, -(2**31)]), int32)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.one_of(st.integers(0, 3), int32),
    "history_tokens": st.one_of(packed(token, max_size=40), st.binary(max_size=160)),
    "history_lengths": st.one_of(packed(length, max_size=20), st.binary(max_size=80)),
    "candidate_tokens": st.one_of(packed(token, max_size=40), st.binary(max_size=160)),
    "candidate_lengths": st.one_of(packed(length, max_size=70), st.binary(max_size=80)),
    "window": st.one_of(st.integers(-1, LONGEST + 1), int32),
    "include_candidate_mass": st.booleans(),
    "request_id": st.integers(0, 2**64 - 1),
}


@st.composite
def near_misses(draw: st.DrawFn) -> pb.ScoreRequest:
    """A good request of either mode, with at most two of its fields replaced by anything."""
    mode = draw(st.sampled_from(list(HistoryMode)))
    cell = st.integers(0, CELLS - 1)
    rows = draw(st.lists(st.lists(cell, max_size=LONGEST), max_size=6))
    positions = len(rows) if mode is HistoryMode.WINDOW else sum(map(len, rows))
    candidates = draw(st.lists(st.lists(cell, max_size=3), min_size=positions, max_size=positions))
    request = wire.encode_query(
        ScoreQuery(
            mode,
            np.array(list(itertools.chain.from_iterable(rows)), np.int32),
            np.array([len(row) for row in rows], np.int32),
            np.array(list(itertools.chain.from_iterable(candidates)), np.int32),
            np.array([len(row) for row in candidates], np.int32),
            window=draw(st.integers(0, LONGEST)) if mode is HistoryMode.SEQUENCE else 0,
            include_candidate_mass=draw(st.booleans()),
        ),
        draw(FIELDS["request_id"]),
    )
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True)):
        setattr(request, name, draw(FIELDS[name]))
    return request


requests = st.one_of(near_misses(), st.builds(pb.ScoreRequest, **FIELDS))


def is_good(request: pb.ScoreRequest) -> bool:
    """The contract, said again and slowly."""
    arrays = []
    for name in ("history_tokens", "history_lengths", "candidate_tokens", "candidate_lengths"):
        data: bytes = getattr(request, name)
        if len(data) % 4:
            return False
        arrays.append([int.from_bytes(data[i : i + 4], "little", signed=True) for i in range(0, len(data), 4)])
    history, rows, candidates, positions = arrays
    is_window = request.mode == pb.HISTORY_MODE_WINDOW
    return (
        request.mode in (pb.HISTORY_MODE_WINDOW, pb.HISTORY_MODE_SEQUENCE)
        and all(0 <= cell < CELLS for cell in history + candidates)
        and all(size >= 0 for size in rows + positions)
        and (sum(rows), sum(positions)) == (len(history), len(candidates))
        and len(positions) == (len(rows) if is_window else len(history))
        and 0 <= request.window <= (0 if is_window else LONGEST)
        and (not is_window or all(size <= LONGEST for size in rows))
        and len(positions) <= MAX_POSITIONS
        and len(candidates) <= MAX_CANDIDATES
    )


def check_answer(request: pb.ScoreRequest, response: pb.ScoreResponse) -> None:
    assert response.request_id == request.request_id
    assert len(response.log_probs) == len(request.candidate_tokens) // 2
    assert np.all(np.frombuffer(response.log_probs, "<f2") <= 0)


@bounded
@given(requests)
def test_what_score_refuses_is_what_the_contract_forbids(channel: grpc.Channel, request_: pb.ScoreRequest) -> None:
    stub = rpc.TeacherServiceStub(channel)
    if is_good(request_):
        check_answer(request_, stub.Score(request_, timeout=60))
        return
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(request_, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details()


@bounded
@given(st.lists(requests, max_size=6, unique_by=lambda request: request.request_id))
def test_a_stream_says_no_and_goes_on(channel: grpc.Channel, asked: list[pb.ScoreRequest]) -> None:
    """Every request has one answer, by its id; the bad ones do not end the stream."""
    call = rpc.TeacherServiceStub(channel).StreamScore(
        iter([pb.StreamScoreRequest(request=request) for request in asked]), timeout=60
    )
    answers = {answer.request_id: answer for answer in call}
    assert call.code() is grpc.StatusCode.OK
    assert answers.keys() == {request.request_id for request in asked}
    for request in asked:
        answer = answers[request.request_id]
        if is_good(request):
            check_answer(request, answer.response)
        else:
            assert (answer.WhichOneof("result"), answer.error.code) == ("error", 3)


@bounded
@given(st.binary(max_size=200))
def test_bytes_that_are_no_message(channel: grpc.Channel, data: bytes) -> None:
    """Most are no protobuf; what is one by chance is judged by its fields."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/Score", None, None)(data, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@bounded
@given(st.lists(st.one_of(st.binary(max_size=60), st.just(pb.StreamScoreRequest(request=GOOD).SerializeToString()))))
def test_bytes_that_are_no_messages_on_a_stream(channel: grpc.Channel, messages: list[bytes]) -> None:
    """The first that is none ends the stream; what came before is answered."""
    method = channel.stream_stream(f"/{SERVICE}/StreamScore", None, pb.StreamScoreResponse.FromString)
    call = method(iter(messages), timeout=60)
    parsed = [_is_message(message) for message in messages]
    answered = 0
    try:
        answered = sum(1 for _ in call)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not all(parsed)
    else:
        assert all(parsed)
        assert answered == len(messages)


def _is_message(data: bytes) -> bool:
    with contextlib.suppress(Exception):
        pb.StreamScoreRequest.FromString(data)
        return True
    return False


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 2**20])
def test_a_message_above_the_limit(channel: grpc.Channel, size: int) -> None:
    """gRPC itself refuses it, before it is read whole."""
    with pytest.raises(grpc.RpcError) as caught:
        rpc.TeacherServiceStub(channel).Score(pb.ScoreRequest(history_tokens=bytes(size)), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_small_messages_that_claim_to_be_large_take_no_memory(teacher: RunningTeacher, channel: grpc.Channel) -> None:
    stub = rpc.TeacherServiceStub(channel)
    claims = [2**31 - 1, 2**30, -(2**31)]
    process = psutil.Process(teacher.process.pid)
    before = process.memory_info().rss
    modes = (pb.HISTORY_MODE_WINDOW, pb.HISTORY_MODE_SEQUENCE)
    for mode, claim, field in itertools.product(modes, claims, ("history_lengths", "candidate_lengths", "window")):
        request = pb.ScoreRequest()
        request.CopyFrom(GOOD)
        request.mode = mode
        setattr(request, field, claim if field == "window" else np.array([claim] * 3, np.int32).tobytes())
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert process.memory_info().rss - before < WORST_GROWTH


@pytest.mark.parametrize(
    ("field", "rows", "candidates"), [("50 positions", 51, 1), ("120 candidates", 1, 121)], ids=["rows", "candidates"]
)
def test_more_than_a_request_may_hold(channel: grpc.Channel, field: str, rows: int, candidates: int) -> None:
    """One more than the limit; the limits are told by GetTeacher, too."""
    query = ScoreQuery(
        HistoryMode.WINDOW,
        np.zeros(0, np.int32),
        np.zeros(rows, np.int32),
        np.zeros(rows * candidates, np.int32),
        np.full(rows, candidates, np.int32),
    )
    stub = rpc.TeacherServiceStub(channel)
    with pytest.raises(grpc.RpcError, match=f"at most {field.split()[0]}") as caught:
        stub.Score(wire.encode_query(query, 1), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    limits = wire.decode_info(stub.GetTeacher(pb.GetTeacherRequest())).limits
    assert (limits.max_request_positions, limits.max_request_candidates) == (MAX_POSITIONS, MAX_CANDIDATES)
