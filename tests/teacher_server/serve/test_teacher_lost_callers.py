"""Callers that die, vanish or do not read: they hold nothing but their own stream, and that not for long."""

from __future__ import annotations

import contextlib
import itertools
import queue
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY, RunningTeacher, TeacherStarter
from prometheus_client.parser import text_string_to_metric_families

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from tests.chaos.proxy import Proxy

pytestmark = pytest.mark.integration

PATIENCE = 60
HELD = (
    "teacher_in_flight_requests",
    "teacher_queue_requests",
    "teacher_queue_positions",
    "teacher_credit_positions",
)
"""Gauges of what callers hold."""


def held(server: RunningTeacher) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=PATIENCE) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if sample.name in HELD}


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.02)


def question(seed: int, rows: int = 2000) -> ScoreQuery:
    """Windows that differ from those of other seeds."""
    random, ones = np.random.default_rng(seed), np.ones(rows, np.int32)
    return ScoreQuery(
        HistoryMode.WINDOW,
        random.integers(0, 40, 15 * rows).astype(np.int32),
        15 * ones,
        random.integers(0, 40, 3 * rows).astype(np.int32),
        3 * ones,
    )


def on_stream(seed: int, **size: int) -> pb.StreamScoreRequest:
    return pb.StreamScoreRequest(request=wire.encode_query(question(seed, **size), seed))


@contextlib.contextmanager
def stream(address: str) -> Iterator[tuple[Any, queue.SimpleQueue[pb.StreamScoreRequest | None]]]:
    """An open call, and where to put its requests; None ends it."""
    requests: queue.SimpleQueue[pb.StreamScoreRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(address) as channel:
        yield rpc.TeacherServiceStub(channel).StreamScore(iter(requests.get, None)), requests
        requests.put(None)


def answers(server: RunningTeacher) -> bool:
    with grpc.insecure_channel(server.address) as channel:
        query = question(10**6, rows=3)
        request = wire.encode_query(query, 1)
        wire.decode_reply(rpc.TeacherServiceStub(channel).Score(request, timeout=PATIENCE), query, request)
    return True


def test_a_caller_killed_in_the_middle_leaves_nothing(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    """SIGKILL, with requests queued, computed, and credit in hand."""
    code = """
import sys, time
sys.path[:0] = sys.argv[2:]
from test_teacher_lost_callers import on_stream, stream
with stream(sys.argv[1]) as (call, requests):
    requests.put(on_stream(0))
    next(call)
    for seed in range(1, 60):
        requests.put(on_stream(seed))
    print("asked", flush=True)
    time.sleep(600)
"""
    with running_teacher(tiny_teacher, "batching.max_batch_tokens=4096") as server:
        caller = subprocess.Popen(
            [sys.executable, "-c", code, server.address, "tests", str(Path(__file__).parent)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        with caller:
            assert caller.stdout is not None and caller.stdout.readline() == "asked\n"
            wait_until(lambda: held(server)["teacher_queue_requests"] > 0)
            caller.kill()
        wait_until(lambda: not any(held(server).values()))
        assert answers(server)


def test_a_caller_that_vanishes_is_noticed(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    """Nothing comes from it any more and nobody says that it has gone: only a test of the connection shows it."""
    with (
        running_teacher(tiny_teacher, "keepalive_seconds=1") as server,
        contextlib.closing(Proxy(server.address)) as proxy,
        stream(proxy.address) as (call, requests),
    ):
        requests.put(on_stream(1, rows=5))
        assert next(call).response.request_id == 1
        assert held(server)["teacher_credit_positions"] > 0
        proxy.swallow()
        wait_until(lambda: not any(held(server).values()))
        assert answers(server)
        call.cancel()


def test_a_quiet_caller_is_left_in_peace(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    """Its process, which may be held up itself, has a third of the interval to answer."""
    with running_teacher(tiny_teacher, "keepalive_seconds=3") as server, stream(server.address) as (call, requests):
        requests.put(on_stream(1, rows=5))
        next(call)
        time.sleep(7)  # two tests of the connection, which gRPC answers by itself
        requests.put(on_stream(2, rows=5))
        assert next(call).response.request_id == 2


def test_a_caller_that_does_not_read_holds_its_own_stream_only(
    tiny_teacher: Path, running_teacher: TeacherStarter
) -> None:
    with running_teacher(tiny_teacher) as server:
        with stream(server.address) as (call, requests):
            for seed in range(200):
                requests.put(on_stream(seed, rows=500))
            wait_until(lambda: held(server)["teacher_credit_positions"] > 0)
            for seed in range(5):
                assert answers(server), seed
            wait_until(lambda: held(server)["teacher_queue_requests"] == 0)
            got = Counter(next(call).request_id for _ in range(200))
            assert got == Counter(range(200)), "every request once, read late"
        wait_until(lambda: not any(held(server).values()))


def test_every_request_is_answered_once_or_told_why_not(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    """While the teacher drains: what it has read is answered, then the stream ends with a status."""
    with running_teacher(tiny_teacher, "batching.max_batch_tokens=4096") as server:
        with stream(server.address) as (call, requests):
            sent = itertools.count()
            for _ in range(40):
                requests.put(on_stream(next(sent), rows=500))
            got = [next(call)]
            server.process.send_signal(signal.SIGTERM)
            for _ in range(40):
                requests.put(on_stream(next(sent), rows=500))
            with pytest.raises(grpc.RpcError) as ended:
                while True:
                    got.append(next(call))
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(PATIENCE) == 0
    counts = Counter(answer.request_id for answer in got)
    assert set(counts.values()) == {1} and set(counts) <= set(range(80))
    for answer in got:
        if answer.WhichOneof("result") == "error":
            assert answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        else:
            wire.decode_reply(answer.response, question(answer.request_id, rows=500))
