"""What the daemon writes for machines: every line, one of each request, and what it says of itself over HTTP."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import start_teacher
from support.scrapes import samples

import shared
from shared import config, wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.serve.config import ServeConfig

TOKEN = "a-token-of-more-than-16-characters"
NAMED = [("authorization", f"Bearer {TOKEN}"), ("teacher-client", 'trainer "7"')]


def request(candidates: list[int], number: int = 1) -> pb.ScoreRequest:
    """Two positions."""
    query = ScoreQuery(
        HistoryMode.WINDOW,
        np.array([1, 2, 3], np.int32),
        np.array([2, 1], np.int32),
        np.array(candidates, np.int32),
        np.array([1, len(candidates) - 1], np.int32),
    )
    return wire.encode_query(query, request_id=number)


def ask_in_all_ways(address: str) -> None:
    """An answer, an invalid request, two answers on a stream, a call without a token, and one for what is served."""
    with grpc.insecure_channel(address) as channel:
        stub = rpc.TeacherServiceStub(channel)
        stub.Score(request([4, 5, 6]), metadata=NAMED, timeout=60)
        for metadata, code in ((NAMED, "INVALID_ARGUMENT"), (None, "UNAUTHENTICATED")):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Score(request([4, 5, 10**6]), metadata=metadata, timeout=60)
            assert refused.value.code().name == code
        asked = [pb.StreamScoreRequest(request=request([7, 8], number)) for number in (1, 2)]
        assert len(list(stub.StreamScore(iter(asked), metadata=NAMED, timeout=60))) == 2
        stub.GetTeacher(pb.GetTeacherRequest(), metadata=NAMED, timeout=60)


@pytest.mark.integration
def test_every_line_is_json_and_every_request_has_one(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    (tmp_path / "tokens").write_text(TOKEN)
    given = ["log.format=json", "log.access=true", f"tokens={tmp_path / 'tokens'}"]
    with start_teacher(tiny_teacher, *given) as teacher:
        ask_in_all_ways(teacher.address)
        seen = samples(teacher.metrics)
        teacher.process.send_signal(signal.SIGTERM)
        assert teacher.process.wait(60) == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert "grpc.core" in {line["logger"] for line in lines}

    requests = [line for line in lines if line["message"] == "request"]
    known = [(line["method"], line["code"], line["positions"]) for line in requests]
    assert sorted(known) == [
        ("GetTeacher", "OK", 0),
        ("Score", "INVALID_ARGUMENT", 2),
        ("Score", "OK", 2),
        ("Score", "UNAUTHENTICATED", 0),
        ("StreamScore", "OK", 2),
        ("StreamScore", "OK", 2),
    ]
    for line in requests:
        is_named = line["method"] != "GetTeacher" and line["code"] != "UNAUTHENTICATED"
        assert line["caller"] == 'trainer "7"' if is_named else line["caller"].startswith("ipv4:127.0.0.1:")
        assert line["queue_us"] >= 0 and line["total_us"] >= line["queue_us"]
    assert all(line["compute_us"] > 0 for line in requests if (line["method"], line["code"]) == ("Score", "OK"))

    (settings,) = [line["message"] for line in lines if line["message"].startswith("settings: ")]
    in_force = config.load(ServeConfig, "serve", overrides=shlex.split(settings.removeprefix("settings: ")))
    assert in_force.log.access and in_force.teacher == tiny_teacher
    assert TOKEN not in json.dumps(lines)

    states = {labels[0]: value for (name, labels), value in seen.items() if name == "teacher_state"}
    assert states == {"loading": 0, "serving": 1, "draining": 0, "stopped": 0}
    assert seen["teacher_load_seconds", ()] > 0
    (build,) = [labels for name, labels in seen if name == "teacher_build_info"]
    assert re.fullmatch("[0-9a-f]{12}", build[0]) and build[1] == shared.__version__
    assert seen["teacher_requests_total", ("INTERNAL", "Score")] == 0


@pytest.mark.integration
def test_there_is_no_access_log_unless_it_is_asked_for(tiny_teacher: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_teacher(tiny_teacher, "warm_up=false") as teacher, grpc.insecure_channel(teacher.address) as channel:
        rpc.TeacherServiceStub(channel).Score(request([4, 5, 6]), timeout=60)
        teacher.process.send_signal(signal.SIGTERM)
        assert teacher.process.wait(60) == 0
    written = capfd.readouterr().err
    assert "settings: " in written and "access" not in written.replace("log.access=false", "")
