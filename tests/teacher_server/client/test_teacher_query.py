"""`query`: a question on the command line, an answer in JSON, an error in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from support.teacher_fakes import expected_log_probs

from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import ScoreReply, decode_query, encode_reply
from teacher_server.__main__ import main
from teacher_server.client import connect


class Teacher(rpc.TeacherServiceServicer):
    """Answers with `expected_log_probs`; refuses token 99."""

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        query = decode_query(request)
        if 99 in query.candidate_tokens:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "candidate_tokens[0]: 99 is not a cell; cells are 0..98")
        mass = expected_log_probs(query)[:1] * 0 if query.include_candidate_mass else None
        return encode_reply(ScoreReply(expected_log_probs(query), mass, "feedc0de", 12, 34), request)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    rpc.add_TeacherServiceServicer_to_server(Teacher(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_answer(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "--address", address, "--history", "1, 2,3", "--candidates", "4,58"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "probabilities": pytest.approx([math.exp(-10 / 64), math.exp(-1)]),
        "log_probs": [-10 / 64, -1],
        "weights_revision": "feedc0de",
        "queue_us": 12,
        "compute_us": 34,
    }


@pytest.mark.parametrize("history", [["--history", ""], []])
def test_empty_history_is_sot_alone(address: str, history: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "--address", address, *history, "--candidates", "64", "candidate_mass=true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["log_probs"] == [-1]
    assert answer["candidate_mass"] == 0


def test_overrides_may_hold_numbers_and_lists(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", f"address={address}", "history=4", "candidates=[60, 124]"]) == 0
    assert json.loads(capsys.readouterr().out)["log_probs"] == [-1, -2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--history", "1,a", "--candidates", "1"], "history: expected tokens separated by commas"),
        (["--history", "1,,2", "--candidates", "1"], "history: expected tokens separated by commas"),
        (["--history", "-1", "--candidates", "1"], "history: expected tokens separated by commas"),
        (["--candidates", "3000000000"], "candidates.0: Input should be less than 2147483648"),
        (["--candidates", ""], "candidates: give at least one token"),
        ([], "candidates is required"),
        (["--candidates", "99"], "candidate_tokens[0]: 99 is not a cell"),
    ],
)
def test_bad_question_is_one_line(
    address: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", "--address", address, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("teacher-server query: ")
    assert message in line


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "--address", "unix:/nonexistent.sock", "--candidates", "1", "timeout=5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unix:/nonexistent.sock" in line


class Loading(Teacher):
    """Refuses the first calls as a server does that is loading."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        self.refusals -= 1
        if self.refusals >= 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the teacher is loading")
        return super().Score(request, context)


def test_a_loading_server_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By as many attempts as it takes; without --wait, and when the time has passed, it is one line."""
    monkeypatch.setattr(connect, "PAUSE_SECONDS", 0.01)
    server, teacher = grpc.server(futures.ThreadPoolExecutor(max_workers=1)), Loading(1)
    rpc.add_TeacherServiceServicer_to_server(teacher, server)
    asked = ["query", "--address", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "--candidates", "64"]
    server.start()
    try:
        assert main(asked) == 2
        assert "the teacher is loading" in capsys.readouterr().err
        teacher.refusals = 3
        assert main([*asked, "--wait", "120"]) == 0
        assert json.loads(capsys.readouterr().out)["log_probs"] == [-1]
        teacher.refusals = 10**9
        assert main([*asked, "--wait", "0.02"]) == 2
        assert "the teacher is loading" in capsys.readouterr().err
    finally:
        server.stop(None).wait()
