"""The codec: what goes in comes out, and what is malformed is named."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from shared import wire
from shared.errors import CompatibilityError, Corrupted, InternalError, InvalidRequest
from shared.grid import Grid
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, Limits, ScoreQuery, ScoreReply, TeacherInfo

int32 = st.integers(-(2**31), 2**31 - 1)
rows = st.lists(st.lists(int32, max_size=5), max_size=6)


def asked(query: ScoreQuery, request_id: int = 1) -> pb.ScoreRequest:
    return wire.encode_query(query, request_id)


def array(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def flat(ragged: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return array([value for row in ragged for value in row]), array([len(row) for row in ragged])


@st.composite
def queries(draw: st.DrawFn) -> ScoreQuery:
    mode, history = draw(st.sampled_from(HistoryMode)), draw(rows)
    tokens, lengths = flat(history)
    positions = len(lengths) if mode is HistoryMode.WINDOW else len(tokens)
    candidates = draw(st.lists(st.lists(int32, max_size=4), min_size=positions, max_size=positions))
    window = draw(st.integers(0, 2**31 - 1)) if mode is HistoryMode.SEQUENCE else 0
    return ScoreQuery(mode, tokens, lengths, *flat(candidates), window, draw(st.booleans()))


def assert_same(first: Any, second: Any) -> None:
    """Field by field; arrays by value and type."""
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


QUERY = ScoreQuery(
    HistoryMode.WINDOW, array([1, 2, 3]), array([2, 0, 1]), array([4, 5, 6, 7]), array([2, 1, 1]), 0, True
)
SEQUENCE = ScoreQuery(HistoryMode.SEQUENCE, array([1, 2, 3]), array([3]), array([4, 5]), array([1, 0, 1]), 4)


@given(queries(), st.integers(0, 2**64 - 1))
def test_a_query_survives_the_wire(query: ScoreQuery, request_id: int) -> None:
    message = pb.ScoreRequest.FromString(wire.encode_query(query, request_id).SerializeToString())
    assert message.request_id == request_id
    assert_same(wire.decode_query(message), query)


def test_integers_travel_in_little_endian_order() -> None:
    message = wire.encode_query(QUERY, 1)
    assert message.history_tokens == struct.pack("<3i", 1, 2, 3)
    assert message.candidate_lengths == struct.pack("<3i", 2, 1, 1)
    unlike: dict[str, Any] = {"history_tokens": np.array([1, 2, 3], ">i4"), "candidate_tokens": np.arange(4, 8)}
    big = dataclasses.replace(QUERY, **unlike)
    assert wire.encode_query(big, 1) == message


def test_log_probabilities_travel_as_little_endian_halves() -> None:
    reply = ScoreReply(np.array([-0.5, -1.0, 0.0, -2.0], ">f2"), np.array([0.25, 1.0, 0.0], ">f2"), "w", 1, 2)
    message = wire.encode_reply(reply, asked(QUERY))
    assert message.log_probs == struct.pack("<4e", -0.5, -1.0, 0.0, -2.0)
    assert message.candidate_mass == struct.pack("<3e", 0.25, 1.0, 0.0)


def test_positions_are_rows_or_tokens() -> None:
    assert QUERY.positions == len(QUERY.history_lengths)
    assert SEQUENCE.positions == len(SEQUENCE.history_tokens)


def packed(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


@pytest.mark.parametrize(
    ("query", "change", "message"),
    [
        (QUERY, {"mode": 0}, r"^mode: 0 "),
        (QUERY, {"mode": 7}, r"^mode: 7 "),
        (QUERY, {"history_tokens": b"123"}, r"^history_tokens: 3 bytes.* multiple of 4"),
        (QUERY, {"history_lengths": b"1"}, r"^history_lengths: 1 bytes"),
        (QUERY, {"candidate_tokens": b"12345"}, r"^candidate_tokens: 5 bytes"),
        (QUERY, {"candidate_lengths": b"12"}, r"^candidate_lengths: 2 bytes"),
        (QUERY, {"window": 4}, r"^window: 4 is set, .* WINDOW"),
        (SEQUENCE, {"window": -1}, r"^window: -1 is negative"),
        (QUERY, {"history_lengths": packed(4, 0, -1)}, r"^history_lengths\[2\]: -1 is negative"),
        (QUERY, {"candidate_lengths": packed(2, -3, 5)}, r"^candidate_lengths\[1\]: -3 is negative"),
        (QUERY, {"history_lengths": packed(2, 0, 2)}, r"^history_lengths: .* 4, but history_tokens has 3"),
        (QUERY, {"history_lengths": b""}, r"^history_lengths: .* 0, but history_tokens has 3"),
        (QUERY, {"candidate_lengths": packed(2, 1, 2)}, r"^candidate_lengths: .* 5, but candidate_tokens has 4"),
        (QUERY, {"history_lengths": packed(2**31 - 1, 2**31 - 1, 5)}, r"^history_lengths: .* 4294967299,"),
        (QUERY, {"candidate_lengths": packed(2, 2)}, r"^candidate_lengths: 2 entries, expected 3 .* row"),
        (SEQUENCE, {"candidate_lengths": packed(2)}, r"^candidate_lengths: 1 entries, expected 3 .* history token"),
    ],
)
def test_a_malformed_field_is_named(query: ScoreQuery, change: dict[str, Any], message: str) -> None:
    request = wire.encode_query(query, 1)
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(InvalidRequest, match=message) as raised:
        wire.decode_query(request)
    assert "\n" not in str(raised.value)


@given(
    st.builds(
        pb.ScoreRequest,
        mode=st.integers(0, 3),
        history_tokens=st.binary(max_size=40),
        history_lengths=st.binary(max_size=16) | st.lists(st.integers(-1, 5), max_size=4).map(lambda v: packed(*v)),
        candidate_tokens=st.binary(max_size=40),
        candidate_lengths=st.binary(max_size=16) | st.lists(st.integers(-1, 5), max_size=9).map(lambda v: packed(*v)),
        window=int32,
    )
)
def test_any_bytes_are_a_whole_query_or_an_invalid_request(request_: pb.ScoreRequest) -> None:
    try:
        query = wire.decode_query(request_)
    except InvalidRequest:
        return
    assert query.history_lengths.sum() == len(query.history_tokens)
    assert query.candidate_lengths.sum() == len(query.candidate_tokens)


finite_halves = st.lists(st.floats(-1000, 0, width=16), min_size=len(QUERY.candidate_tokens), max_size=4)


@given(finite_halves, st.booleans(), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_a_reply_survives_the_wire(values: list[float], with_mass: bool, request_id: int, microseconds: int) -> None:
    query = dataclasses.replace(QUERY, include_candidate_mass=with_mass)
    mass = np.array([0.5, 0.0, 1.0], np.float16) if with_mass else None
    reply = ScoreReply(np.array(values, np.float16), mass, "abc", microseconds, 2)
    message = pb.ScoreResponse.FromString(wire.encode_reply(reply, asked(query, request_id)).SerializeToString())
    assert message.request_id == request_id
    assert_same(wire.decode_reply(message, query, asked(query, request_id)), reply)


def halves(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}e", *values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probs": halves(-1, -1, -1)}, "6 bytes of log_probs for 4 candidates"),
        ({"log_probs": halves(-1, -1, -1, -1, -1)}, "10 bytes of log_probs for 4 candidates"),
        ({"log_probs": halves(-1, -1, -1, -1) + b"0"}, "9 bytes of log_probs"),
        ({"log_probs": b""}, "0 bytes of log_probs"),
        ({"log_probs": halves(-1, -1, -1, 0.001)}, "NaN or above 0"),
        ({"log_probs": halves(-1, float("nan"), -1, -1)}, "NaN or above 0"),
        ({"log_probs": halves(-1, float("inf"), -1, -1)}, "NaN or above 0"),
        ({"candidate_mass": b""}, "0 bytes of candidate_mass, expected 6"),
        ({"candidate_mass": halves(1, 1)}, "4 bytes of candidate_mass, expected 6"),
        ({"candidate_mass": halves(1, 1, 1) + b"0"}, "7 bytes of candidate_mass, expected 6"),
        ({"candidate_mass": halves(1, 1, 1.001)}, "outside 0 to 1"),
        ({"candidate_mass": halves(1, -0.001, 1)}, "outside 0 to 1"),
        ({"candidate_mass": halves(1, float("nan"), 1)}, "outside 0 to 1"),
    ],
)
def test_an_answer_that_does_not_fit_its_question_is_refused(change: dict[str, bytes], message: str) -> None:
    reply = ScoreReply(np.full(4, -1, np.float16), np.full(3, 0.5, np.float16), "w", 0, 0)
    response = wire.encode_reply(reply, asked(QUERY))
    for name, value in change.items():
        setattr(response, name, value)
    response.checksum = wire.checksum(response)
    with pytest.raises(InternalError, match=message):
        wire.decode_reply(response, QUERY)


def test_a_mass_that_was_not_asked_for_is_refused() -> None:
    reply = ScoreReply(np.full(4, -1, np.float16), np.full(3, 0.5, np.float16), "w", 0, 0)
    query = dataclasses.replace(QUERY, include_candidate_mass=False)
    with pytest.raises(InternalError, match="6 bytes of candidate_mass, expected 0"):
        wire.decode_reply(wire.encode_reply(reply, asked(QUERY)), query)


GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.012, "line")
TOKENISERS = [
    Tokeniser(Vocabulary.full(GRID.cells), GRID),
    Tokeniser(Vocabulary.of_occupied(np.array([3, 8, 30])), GRID),
    Tokeniser(Vocabulary(40, 40, 42, 50), None),
]


def info_of(tokeniser: Tokeniser) -> TeacherInfo:
    limits = Limits(15, 2**40, 2**41, 2**42, 2**43)
    return TeacherInfo("abc", tokeniser, 2, 4, 16, 17, 2**33, limits, "float32", "cpu", "1.2")


@pytest.mark.parametrize("tokeniser", TOKENISERS, ids=["full", "occupied", "without a grid"])
def test_info_survives_the_wire(tokeniser: Tokeniser) -> None:
    info = info_of(tokeniser)
    message = pb.GetTeacherResponse.FromString(wire.encode_info(info).SerializeToString())
    again = wire.decode_info(message)
    assert again.tokeniser.fingerprint == tokeniser.fingerprint == message.fingerprint
    assert again.tokeniser.differences(tokeniser) == []
    assert message.vocabulary.size == tokeniser.vocabulary.size
    assert dataclasses.replace(again, tokeniser=tokeniser) == info


def test_the_message_has_every_field_of_grid_and_limits() -> None:
    assert {field.name for field in pb.Grid.DESCRIPTOR.fields} == set(Grid.model_fields)
    assert {field.name for field in pb.Limits.DESCRIPTOR.fields} == {f.name for f in dataclasses.fields(Limits)}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vocabulary.cells", 0, "special tokens"),
        ("vocabulary.pad", 2, "special tokens"),
        ("vocabulary.occupied_cells", packed(1, 2), "occupied cells"),
        ("vocabulary.occupied_cells", packed(3, 2, 1), "occupied cells"),
        ("vocabulary.occupied_cells", b"123", "buffer size"),
        ("grid.rows", 0, "rows"),
        ("grid.cell_lat", float("nan"), "cell_lat"),
        ("grid.centroid", "middle", "centroid"),
        ("grid.max_lat", 0.0, "bounds are empty"),
    ],
)
def test_a_teacher_that_describes_itself_wrongly_is_refused(path: str, value: Any, message: str) -> None:
    response = wire.encode_info(info_of(TOKENISERS[1]))
    part, _, name = path.partition(".")
    setattr(getattr(response, part), name, value)
    response.checksum = wire.checksum(response)
    with pytest.raises(CompatibilityError, match=rf"describes itself wrongly: .*{message}") as raised:
        wire.decode_info(response)
    assert "\n" not in str(raised.value)


def test_an_empty_description_is_refused() -> None:
    empty = pb.GetTeacherResponse()
    with pytest.raises(Corrupted, match="no checksum"):
        wire.decode_info(empty)
    empty.checksum = wire.checksum(empty)
    with pytest.raises(CompatibilityError, match="describes itself wrongly"):
        wire.decode_info(empty)


def test_the_checksum_is_that_of_the_contract() -> None:
    """Written out by hand once, so that another implementation has something to compare with."""
    content = struct.pack("<QQ", 5, 1)
    for values in (packed(1, 2, 3), packed(2, 0, 1), packed(4, 5, 6, 7), packed(2, 1, 1)):
        content += struct.pack("<Q", len(values)) + values
    content += struct.pack("<QQ", 0, True)
    assert wire.checksum(asked(QUERY, 5)) == zlib.crc32(content)
    assert wire.encode_reply(REPLY, asked(QUERY, 5)).request_checksum == zlib.crc32(content)
    grid = pb.Grid(min_lat=0.5, rows=-3, centroid="é")
    content = struct.pack("<6d2q", 0.5, 0, 0, 0, 0, 0, -3, 0) + struct.pack("<Q", 2) + "é".encode()
    assert wire.checksum(grid) == zlib.crc32(content)


REPLY = ScoreReply(np.full(4, -1, np.float16), np.full(3, 0.5, np.float16), "w", 7, 8)


def flipped(data: bytes) -> Iterator[bytes]:
    """All that differ in one bit."""
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def test_no_flipped_bit_of_a_request_goes_unnoticed() -> None:
    """It cannot be read, is invalid, or is answered as what it was read as."""
    request = asked(QUERY, 5)
    for data in flipped(request.SerializeToString()):
        try:
            read = pb.ScoreRequest.FromString(data)
            wire.decode_query(read)
        except (DecodeError, InvalidRequest):
            continue
        if read == request:  # a bit that the encoding does not need
            continue
        with pytest.raises((Corrupted, InternalError)):
            wire.decode_reply(wire.encode_reply(REPLY, read), QUERY, request)


@pytest.mark.parametrize("kind", ["answer", "description"])
def test_no_flipped_bit_of_an_answer_goes_unnoticed(kind: str) -> None:
    answer, description = wire.encode_reply(REPLY, asked(QUERY)), wire.encode_info(info_of(TOKENISERS[1]))
    message: Any = answer if kind == "answer" else description
    for data in flipped(message.SerializeToString()):
        try:
            read = type(message).FromString(data)
        except DecodeError:
            continue
        if read != message:
            with pytest.raises(Corrupted):
                wire.decode_reply(read, QUERY) if kind == "answer" else wire.decode_info(read)


def test_an_answer_to_another_request_is_refused() -> None:
    with pytest.raises(InternalError, match="answered request 5, asked was 6"):
        wire.decode_reply(wire.encode_reply(REPLY, asked(QUERY, 5)), QUERY, asked(QUERY, 6))


def test_an_answer_without_a_checksum_is_refused() -> None:
    response = wire.encode_reply(REPLY, asked(QUERY))
    response.ClearField("checksum")
    with pytest.raises(Corrupted, match="the answer has no checksum"):
        wire.decode_reply(response, QUERY)
