"""A daemon whose device is lost: it stops serving, says why once, and exits for a supervisor to start it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery

pytestmark = pytest.mark.integration

PATIENCE = 60
LOST = """
import sys
from teacher_server.engine.engine import Engine
from teacher_server.scorer import ScorerLost
def score(self, ready):
    raise ScorerLost("cuda:0 is lost: CUDA error: an illegal memory access was encountered")
Engine.score = score
from teacher_server.__main__ import main
sys.exit(main())
"""


def test_it_ends_with_a_code_and_its_callers_may_ask_another(tiny_teacher: Path) -> None:
    arguments = ["serve", "--teacher", str(tiny_teacher), "--listen", "127.0.0.1:0", "--metrics-listen", "off"]
    process = subprocess.Popen(
        [sys.executable, "-c", LOST, *arguments, "warm_up=false", "engine.device=cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["listening"]
        one = np.ones(1, np.int32)
        query = ScoreQuery(HistoryMode.WINDOW, one, one, one, one)
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            rpc.TeacherServiceStub(channel).Score(wire.encode_query(query, 1), timeout=PATIENCE)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "cuda:0 is lost: CUDA error: an illegal memory access" in (refused.value.details() or "")
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert log.count("the teacher cannot go on and ends") == 1
    finally:
        process.kill()
        process.communicate()
