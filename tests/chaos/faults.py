"""What is done to a running teacher, or to the network before it."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from tests.chaos.processes import Teacher
from tests.chaos.proxy import Proxy

QUEUE = 2000
"""Positions that may wait for a teacher whose queue is to be full."""


@dataclasses.dataclass
class Scene:
    """What a fault may touch.

    Attributes:
        proxy: what the trainers dial.
        teacher: the one behind it.
        start: starts a teacher with a file, the right one or another.
        right, other: these files.
        cells: tokens of its vocabulary.
    """

    proxy: Proxy
    teacher: Teacher
    start: Callable[[Path], Teacher]
    right: Path
    other: Path
    cells: int
    flood: Flood | None = None

    def replace_teacher(self, file: Path) -> None:
        """Another teacher behind the proxy; the one before has ended."""
        self.teacher = self.start(file)
        self.proxy.target = self.teacher.address()


Act = Callable[[Scene], None]


def nothing(_: Scene) -> None:
    """Of a fault that needs no end."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        begin, end: what is done, and undone after `seconds`.
        seconds: in between; None: as long as the options say.
        serve, client: settings of teacher and trainer that belong to it.
        is_refused: whether trainers must refuse to go on, until resumed after the end.
    """

    begin: Act
    end: Act = nothing
    seconds: float | None = 0.0
    serve: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    is_refused: bool = False


class Flood:
    """Callers that ask for more than the queue takes, until stopped."""

    def __init__(self, address: str, cells: int, callers: int = 4) -> None:
        self._is_over = threading.Event()
        self.refused = 0
        self._threads = [threading.Thread(target=self._ask, args=(address, cells, n)) for n in range(callers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when nobody asks any more."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, address: str, cells: int, seed: int) -> None:
        random, count = np.random.default_rng(seed), QUEUE - 20  # no micro-batch has room beside it
        with grpc.insecure_channel(address) as channel:
            stub = rpc.TeacherServiceStub(channel)
            while not self._is_over.is_set():
                try:
                    stub.Score(_rows(random, count, cells), timeout=30)
                except grpc.RpcError as error:
                    self.refused += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    self._is_over.wait(0.02)


def _rows(random: np.random.Generator, count: int, cells: int) -> pb.ScoreRequest:
    """Windows that nobody has asked for before."""
    tokens = random.integers(0, cells, 4 * count).astype(np.int32)
    ones = np.ones(count, np.int32)
    return wire.encode_query(ScoreQuery(HistoryMode.WINDOW, tokens, 4 * ones, tokens[:count], ones), 1)


def _kill(scene: Scene) -> None:
    scene.teacher.kill()


def _terminate(scene: Scene) -> None:
    scene.teacher.signal(signal.SIGTERM)
    scene.teacher.wait()


def _start_right(scene: Scene) -> None:
    scene.replace_teacher(scene.right)


def _start_other(scene: Scene) -> None:
    scene.teacher.kill()
    scene.replace_teacher(scene.other)


def _return(scene: Scene) -> None:
    scene.teacher.kill()
    scene.replace_teacher(scene.right)


def _flood(scene: Scene) -> None:
    scene.flood = Flood(scene.teacher.address(), scene.cells)


def _stop_flood(scene: Scene) -> None:
    assert scene.flood is not None
    scene.flood.stop()


def _weather(**values: float) -> Act:
    def act(scene: Scene) -> None:
        for name, value in values.items():
            setattr(scene.proxy.weather, name, value)

    return act


FAULTS = {
    "kill -9": Fault(_kill, _start_right, 1.0),
    "SIGTERM": Fault(_terminate, _start_right, 1.0),
    "SIGSTOP": Fault(
        lambda scene: scene.teacher.signal(signal.SIGSTOP), lambda scene: scene.teacher.signal(signal.SIGCONT), None
    ),
    "reset": Fault(lambda scene: scene.proxy.reset()),
    "half-open": Fault(lambda scene: scene.proxy.swallow()),
    "corrupt 1 %": Fault(_weather(corrupt=0.01)),
    "latency 500 ms": Fault(_weather(delay=0.5), _weather(delay=0.0), 5.0),
    "1 Mb/s": Fault(_weather(bits_per_second=1e6), _weather(bits_per_second=0.0), 5.0),
    "full queue": Fault(
        _flood,
        _stop_flood,
        4.0,
        serve=(f"batching.max_queued_positions={QUEUE}", f"batching.max_request_positions={QUEUE}", "cache.mib=0"),
    ),
    "expired deadlines": Fault(_weather(delay=1.5), _weather(delay=0.0), 5.0, client=("client.deadline_seconds=1",)),
    "wrong revision": Fault(_start_other, _return, is_refused=True),
}
