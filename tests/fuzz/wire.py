"""Messages: what the daemon does with a request, and a client with an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from fuzz.target import Target
from shared import wire
from shared.errors import InvalidRequest
from shared.grid import Grid
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, Limits, ScoreQuery, ScoreReply, TeacherInfo
from teacher_server.answers.table import AnswerTable
from teacher_server.serve import checks
from teacher_server.serve.checks import RequestLimits

MessageT = TypeVar("MessageT", bound=Message)
SignedT = TypeVar("SignedT", pb.ScoreResponse, pb.GetTeacherResponse)
CELLS, BLOCK_SIZE, MAX_POSITIONS, MAX_CANDIDATES = 40, 16, 500, 2000
LIMITS = RequestLimits(CELLS, CELLS + 1, BLOCK_SIZE - 1, MAX_POSITIONS, MAX_CANDIDATES)
COSTS = np.arange(BLOCK_SIZE + 1, dtype=np.int64)
QUERY = ScoreQuery(
    HistoryMode.SEQUENCE,
    np.array([1, 2, 3], np.int32),
    np.array([3], np.int32),
    np.array([4, 5, 6, 7], np.int32),
    np.array([2, 0, 2], np.int32),
    window=2,
    include_candidate_mass=True,
)
WINDOWS = ScoreQuery(
    HistoryMode.WINDOW,
    np.array([1, 2, 3], np.int32),
    np.array([0, 3], np.int32),
    np.array([4, 5, CELLS + 1], np.int32),
    np.array([1, 2], np.int32),
)


def read_request(data: bytes) -> None:
    """As the service does, as far as the queue: decoded, checked, looked up among the rows."""
    try:
        message = pb.ScoreRequest.FromString(data)
    except DecodeError:
        raise InvalidRequest("not a message") from None  # as interceptors do
    query = wire.decode_query(message)
    checks.check(query, LIMITS)
    rows = AnswerTable(2**16, COSTS, sot=CELLS + 2, seed=0)
    asked = rows.ask(query)
    slots, count = np.empty(len(asked.slots) + 1, np.int64), 0
    count, _ = rows.take(asked, 10**6, slots, count)
    batch = rows.batch(slots[:count].copy())
    assert len(batch.candidates) == batch.candidate_lengths.sum() <= MAX_CANDIDATES
    rows.release(asked)
    rows.fail(slots[:count].copy())


def _requests() -> Sequence[bytes]:
    return [wire.encode_query(query, 7).SerializeToString() for query in (QUERY, WINDOWS)]


def read_reply(data: bytes) -> None:
    """An answer to a question of ours, as damaged on its way, or as a teacher may have sent it."""
    message = _parsed(pb.ScoreResponse(), data)
    if message is not None:
        wire.decode_reply(_signed(message, data), QUERY)


def _replies() -> Sequence[bytes]:
    reply = ScoreReply(np.array([-1, -1, -2, -0.5], np.float16), np.array([0.5, 0, 0.5], np.float16), "r", 1, 2)
    return [wire.encode_reply(reply, wire.encode_query(QUERY, 7)).SerializeToString()]


def read_info(data: bytes) -> None:
    """A teacher's description of itself, and what a trainer asks of it."""
    message = _parsed(pb.GetTeacherResponse(), data)
    if message is None:
        return
    tokeniser = wire.decode_info(_signed(message, data)).tokeniser
    assert tokeniser.fingerprint
    tokeniser.differences(Tokeniser(Vocabulary.full(CELLS), None))


def _infos() -> Sequence[bytes]:
    grid = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
    vocabularies = (Vocabulary.full(grid.cells), Vocabulary.of_occupied(np.array([3, 9, 17])))
    limits = Limits(15, 2**20, 100, 50, 200)
    tokenisers = [Tokeniser(vocabulary, grid) for vocabulary in vocabularies]
    infos = [TeacherInfo("r", tokeniser, 2, 2, 16, 16, 1000, limits, "float32", "cpu", "1") for tokeniser in tokenisers]
    return [wire.encode_info(info).SerializeToString() for info in infos]


def _signed(message: SignedT, data: bytes) -> SignedT:
    """The message, with the right checksum unless its bytes end in 0: otherwise nothing behind it would be reached."""
    if not data.endswith(b"\0"):
        message.checksum = wire.checksum(message)
    return message


def _parsed(message: MessageT, data: bytes) -> MessageT | None:
    """The message, or None: gRPC fails the call on what does not parse."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return message


TARGETS = (
    Target("request", read_request, _requests),
    Target("reply", read_reply, _replies),
    Target("info", read_info, _infos),
)
