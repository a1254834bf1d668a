"""Clients of every manner, one a process: `python -m benchmarks.soak.clients KIND ADDRESS SEED`.

    stay    a trainer's client: a stream that is never idle, until SIGTERM
    visit   connects, asks well or badly, leaves at any moment, and comes again, until SIGTERM
    deaf    asks on a stream and reads no answer; leaves after some seconds, or is killed

They end with 0, or with 1 and a line on stderr if an answer was another than it should have been.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from benchmarks import questions
from benchmarks.load import OPTIONS
from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig

POSITIONS, WINDOW = 400, 4
AHEAD = 6
"""Requests of a `stay` under way."""
DEAF_REQUESTS = 400
"""Requests of a `deaf`: their answers are more than what gRPC buffers."""
DEAF_SECONDS = 10.0
PATIENCE = 120.0
"""Seconds until a lost answer fails a client."""

Code = grpc.StatusCode
BUSY = {Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED}
"""What a well-behaved caller of a saturated teacher may be told."""


class Unexpected(Exception):
    """The teacher answered what it should not have."""


def stay(address: str, seed: int) -> None:
    """Keeps some requests under way as a trainer does; every answer is looked at by the trainer's own client."""
    client = GrpcTeacher(address, ClientConfig(connect_seconds=PATIENCE, deadline_seconds=PATIENCE))
    queries = _queries(client.info.tokeniser.vocabulary.cells, seed)
    waiting = {client.submit(next(queries)) for _ in range(AHEAD)}
    while True:
        done, waiting = futures.wait(waiting, PATIENCE, futures.FIRST_COMPLETED)
        if not done:
            raise Unexpected(f"no answer within {PATIENCE:g} s")
        for answer in done:
            answer.result()
            waiting.add(client.submit(next(queries)))


def visit(address: str, seed: int) -> None:
    """One short visit after another, each over a connection of its own."""
    dice = random.Random(seed)  # noqa: S311 - an order of visits
    queries = _queries(None, seed)
    while True:
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            dice.choice(VISITS)(channel, queries, dice)


def _ask_well(channel: grpc.Channel, queries: Iterator[ScoreQuery], dice: random.Random) -> None:
    for _ in range(dice.randint(1, 4)):
        query = next(queries)
        code, answer = _call(channel, wire.encode_query(query, dice.getrandbits(64)), PATIENCE)
        if code is Code.OK:
            wire.decode_reply(answer, query)
        elif code not in BUSY:
            raise Unexpected(f"{code.name} for a good request")


def _ask_badly(channel: grpc.Channel, queries: Iterator[ScoreQuery], dice: random.Random) -> None:
    request = wire.encode_query(next(queries), 1)
    field = dice.choice(["history_tokens", "history_lengths", "candidate_tokens", "candidate_lengths"])
    setattr(request, field, dice.randbytes(dice.choice([3, 4, 400])) or b"?")
    code, _ = _call(channel, request, PATIENCE)
    if code is not Code.INVALID_ARGUMENT:
        raise Unexpected(f"{code.name} for a request with random bytes in {field}")


def _ask_in_haste(channel: grpc.Channel, queries: Iterator[ScoreQuery], dice: random.Random) -> None:
    """A deadline that passes before or while the request is computed."""
    code, _ = _call(channel, wire.encode_query(next(queries), 1), dice.uniform(0.001, 0.05))
    if code is not Code.OK and code not in BUSY:
        raise Unexpected(f"{code.name} for a request with a short deadline")


def _stream_and_leave(channel: grpc.Channel, queries: Iterator[ScoreQuery], dice: random.Random) -> None:
    """Some requests on a stream, of which some answers are read: then it is cancelled, or its connection closed."""
    asked, read = dice.randint(1, 12), dice.randint(0, 6)
    call = rpc.TeacherServiceStub(channel).StreamScore(
        iter([pb.StreamScoreRequest(request=wire.encode_query(next(queries), i)) for i in range(asked)])
    )
    for _, answer in zip(range(min(asked, read)), call, strict=False):
        if answer.WhichOneof("result") == "error" and answer.error.code != Code.RESOURCE_EXHAUSTED.value[0]:
            raise Unexpected(f"on a stream: {answer.error.message}")
    if dice.random() < 0.5:
        call.cancel()


def _stream_to_the_end(channel: grpc.Channel, queries: Iterator[ScoreQuery], dice: random.Random) -> None:
    asked = dice.randint(0, 6)
    call = rpc.TeacherServiceStub(channel).StreamScore(
        iter([pb.StreamScoreRequest(request=wire.encode_query(next(queries), i)) for i in range(asked)])
    )
    if (found := sorted(answer.request_id for answer in call)) != list(range(asked)):
        raise Unexpected(f"{asked} requests on a stream have answers {found}")


VISITS: list[Callable[[grpc.Channel, Iterator[ScoreQuery], random.Random], None]] = [
    _ask_well,
    _ask_badly,
    _ask_in_haste,
    _stream_and_leave,
    _stream_to_the_end,
]


def deaf(address: str, seed: int) -> None:
    """Sends more than it reads: nothing."""
    queries = _queries(None, seed)
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        requests = (pb.StreamScoreRequest(request=wire.encode_query(next(queries), i)) for i in range(DEAF_REQUESTS))
        call = rpc.TeacherServiceStub(channel).StreamScore(requests)
        time.sleep(DEAF_SECONDS)
        call.cancel()


KINDS = {"stay": stay, "visit": visit, "deaf": deaf}
FEWEST_CELLS = 1000
"""Cells of the soak's teacher at least, so that nobody needs to ask."""


def _queries(cells: int | None, seed: int) -> Iterator[ScoreQuery]:
    """Questions that are never repeated."""
    return questions.endless(cells or FEWEST_CELLS, POSITIONS, HistoryMode.WINDOW, WINDOW, seed)


def _call(channel: grpc.Channel, request: pb.ScoreRequest, timeout: float) -> tuple[grpc.StatusCode, Any]:
    answer, call = None, rpc.TeacherServiceStub(channel).Score.future(request, timeout=timeout)
    try:
        answer = call.result()
    except grpc.RpcError as error:
        return error.code(), None
    return Code.OK, answer


def main() -> int:
    """Runs one client; returns the exit code."""
    kind, address, seed = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # an exit in order would wait for threads
    try:
        KINDS[kind](address, int(seed))
    except Exception as error:
        print(f"soak client {kind}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
