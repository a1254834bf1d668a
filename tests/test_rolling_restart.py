"""Replicas replaced one after another under load: a trainer ends with the same bits, a plain client sees no failure.

What is done next is decided by how many questions were asked, not by a clock: it happens under load on any machine.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, RunningTeacher, start_teacher, write_tiny_teacher
from support.random_city import write_random_store
from support.runs import assert_same_runs
from support.scrapes import samples

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from student_trainer.train.config import TrainConfig
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

pytestmark = pytest.mark.integration

PATIENCE = 60
SETTINGS: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 3, "batch_size": 4},
    "log": {"tensorboard": False, "every": 1, "progress": False},
    "runtime": {"device": "cpu", "threads": 1},
    "distill": {"window": 3},
}
"""60 trips: some 15 questions an epoch and 8 of its validation."""


class Replicas:
    """Two teachers on ports of their own, each of which can be replaced by another process."""

    def __init__(self, teacher: Path, *overrides: str) -> None:
        self._teacher, self._overrides = teacher, overrides
        self._ended = contextlib.ExitStack()
        self.running: dict[str, RunningTeacher] = {}
        for _ in range(2):
            self._start("127.0.0.1:0")
        self.first, self.second = self.running

    def _start(self, listen: str) -> None:
        started = self._ended.enter_context(start_teacher(self._teacher, *self._overrides, listen=listen))
        self.running[started.address] = started

    def stop(self, address: str) -> None:
        """Begins to drain a teacher."""
        self.running[address].process.terminate()

    def replace(self, address: str) -> None:
        """Waits for its end, and starts another in its place."""
        self.gone(address)
        self._start(address)

    def gone(self, address: str) -> None:
        """Waits for its end, which must be a good one."""
        assert self.running.pop(address).process.wait(PATIENCE) == 0

    def close(self) -> None:
        """Ends all."""
        self._ended.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


@pytest.fixture(scope="module")
def teacher(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    return path


@pytest.fixture
def replicas(teacher: Path) -> Iterator[Replicas]:
    started = Replicas(teacher, "max_connection_age_seconds=0.5")
    try:
        yield started
    finally:
        started.close()


class Scripted:
    """A teacher's client that does something before some of its questions, by number."""

    def __init__(self, client: GrpcTeacher, script: Mapping[int, Any]) -> None:
        self.revision, self.failure_stats = client.revision, client.failure_stats
        self._client, self._script, self.asked = client, script, 0

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        self.asked += 1
        if self.asked in self._script:
            self._script[self.asked]()
        return self._client.submit(query)

    def close(self) -> None:
        """See `Teacher`."""
        self._client.close()


def train(store: Store, out: Path, address: str, script: Mapping[int, Any]) -> int:
    """Trains, and says how many questions were asked."""
    values = {"data": store.path, "out": out, "teacher": address, "seed": 3, **SETTINGS}
    settings = TrainConfig.model_validate(values)
    runtime = Runtime.of(settings.runtime, torch.device("cpu"))
    scripted = Scripted(GrpcTeacher(address, ClientConfig()), script)
    try:
        Session(settings, store, runtime, scripted).train()
    finally:
        scripted.close()
    return scripted.asked


@pytest.mark.parametrize("kind", ["list", "name"])
def test_a_trainer_ends_with_the_bits_of_an_undisturbed_run(
    kind: str, store: Store, teacher: Path, replicas: Replicas, tmp_path: Path
) -> None:
    """In the end nobody is left but the second replacement, so it was found, too."""
    a, b = replicas.first, replicas.second
    script = {
        6: lambda: replicas.stop(a),
        9: lambda: replicas.replace(a),
        13: lambda: replicas.stop(b),
        16: lambda: replicas.replace(b),
        20: lambda: replicas.stop(a),
        23: lambda: replicas.gone(a),
    }
    asked = train(store, tmp_path / "rolled", f"{a},{b}" if kind == "list" else f"ipv4:{a},{b}", script)
    assert asked > 40
    (last,) = replicas.running.values()
    assert samples(last.metrics or "")["teacher_positions_total", ("miss",)] > 0
    with start_teacher(teacher) as alone:
        train(store, tmp_path / "calm", alone.address, {})
    assert_same_runs(tmp_path / "calm", tmp_path / "rolled")


def documented_service_config() -> str:
    """What docs/teachers.md gives to clients that are not ours."""
    (block,) = re.findall(r"```json\n(.*?)```", (REPOSITORY / "docs" / "teachers.md").read_text("utf-8"), re.DOTALL)
    return json.dumps(json.loads(block))


def question(number: int) -> ScoreQuery:
    random = np.random.default_rng(number % 40)
    return ScoreQuery(
        HistoryMode.WINDOW,
        random.integers(0, 4, 60).astype(np.int32),
        np.full(20, 3, np.int32),
        random.integers(0, 4, 60).astype(np.int32),
        np.full(20, 3, np.int32),
    )


def test_a_plain_client_with_the_documented_service_config_sees_no_failure(replicas: Replicas) -> None:
    """Four threads that ask all the time, with nothing but gRPC's own retries."""
    a, b = replicas.first, replicas.second
    answers: dict[int, set[bytes]] = {number: set() for number in range(40)}
    asked, has_rolled, stopped = threading.Semaphore(0), threading.Event(), threading.Event()
    options = [("grpc.service_config", documented_service_config())]

    def ask(first: int) -> int:
        number = first
        while not has_rolled.is_set():
            request = wire.encode_query(question(number), number)
            reply = wire.decode_reply(stub.Score(request), question(number), request)
            answers[number % 40].add(reply.log_probs.tobytes())
            asked.release()
            number += 4
        return (number - first) // 4

    def let_pass(count: int) -> None:
        for _ in range(count):
            while not asked.acquire(timeout=1):
                assert not stopped.is_set(), "an asker has failed"

    def roll() -> None:
        for address in (a, b):
            let_pass(100)
            replicas.stop(address)
            let_pass(100)
            replicas.replace(address)
        let_pass(100)

    with grpc.insecure_channel(f"ipv4:{a},{b}", options=options) as channel, ThreadPoolExecutor(4) as pool:
        stub = rpc.TeacherServiceStub(channel)
        askers = [pool.submit(ask, first) for first in range(4)]
        for asker in askers:
            asker.add_done_callback(lambda _: stopped.set())
        try:
            roll()
        finally:
            has_rolled.set()
        assert sum(asker.result(PATIENCE) for asker in askers) >= 500
    assert all(len(found) == 1 for found in answers.values())
