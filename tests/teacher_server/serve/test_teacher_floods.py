"""Floods by callers without a token: the daemon stays within the memory that docs/SECURITY.md states, and answers.

pytest -s tests/teacher_server/serve/test_teacher_floods.py      prints memory before, highest and after
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import grpc
import numpy as np
import psutil
import pytest
from conftest import REPOSITORY, RunningTeacher, start_teacher
from support.floods import Connection
from support.memory_groups import MemoryGroup, memory_group
from support.scrapes import samples, wait_until

from shared import wire
from shared.channel import ChannelConfig
from shared.errors import from_status
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.client import healthcheck, info
from teacher_server.serve.limits import SERVICE

pytestmark = pytest.mark.integration

PATIENCE = 60
TOKEN = "a-token-of-thirty-two-characters"
BEARER = (("authorization", f"Bearer {TOKEN}"),)
MIB = 2**20
CONNECTIONS = 32
FLOODING = CONNECTIONS - 8
"""Connections of a flood that leaves some for others."""
HOLD_SECONDS = 3.0
"""How long a flood stands when it has been sent."""
SCORE, STREAM = f"/{SERVICE}/Score", f"/{SERVICE}/StreamScore"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
ALL = (SCORE, STREAM, CHECK, WATCH, REFLECT, "/nobody/Nothing")
BOMB_BYTES, PLAIN_BYTES = 60 * MIB, 8 * MIB


def bound(max_message_bytes: int) -> int:
    """Bytes that callers without a token can make the daemon hold, as docs/SECURITY.md states it."""
    return CONNECTIONS * 2 * MIB + 12 * max_message_bytes + 32 * MIB


class Memory:
    """Samples the resident size of a process."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.highest = self.now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):
            while not self._stop.wait(0.01):
                self.highest = max(self.highest, self.now)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup | None]:
    """The daemon's control group: with its limit, the system ends a daemon that holds more than is stated."""
    with memory_group("floods") as made:
        yield made


@pytest.fixture(scope="module")
def teacher(
    tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory, group: MemoryGroup | None
) -> Iterator[RunningTeacher]:
    known = tmp_path_factory.mktemp("tokens") / "tokens"
    known.write_text(TOKEN)
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if group is None else group.inherited():
            server = start_teacher(tiny_teacher, f"tokens={known}", f"max_connections={CONNECTIONS}")
            running = stack.enter_context(server)
        yield running


@pytest.fixture(scope="module")
def trainer(teacher: RunningTeacher) -> Iterator[rpc.TeacherServiceStub]:
    """A caller with a token, who is there before the floods."""
    with grpc.insecure_channel(teacher.address) as channel:
        stub = rpc.TeacherServiceStub(channel)
        stub.GetTeacher(pb.GetTeacherRequest(), metadata=BEARER, timeout=PATIENCE)
        yield stub


def message_limit(trainer: rpc.TeacherServiceStub) -> int:
    """The largest message that the daemon takes, bytes."""
    return wire.decode_info(trainer.GetTeacher(pb.GetTeacherRequest(), metadata=BEARER)).limits.max_message_bytes


@pytest.fixture(scope="module")
def at_rest(teacher: RunningTeacher, trainer: rpc.TeacherServiceStub, group: MemoryGroup | None) -> int:
    """Resident bytes before the first flood: a later one could do with what the system has not got back yet.

    From now on the system keeps the daemon to the bound, where it can.
    """
    answered(trainer, 0)
    if group is None:
        print("NOTICE: no control group can be made here; memory is watched, not limited")
    else:
        group.limit(group.used + bound(message_limit(trainer)))
    return Memory(teacher.process.pid).now


def question(seed: int) -> ScoreQuery:
    random = np.random.default_rng(seed)
    tokens = [random.integers(0, 40, count).astype(np.int32) for count in (150, 30)]
    return ScoreQuery(HistoryMode.WINDOW, tokens[0], np.full(10, 15, np.int32), tokens[1], np.full(10, 3, np.int32))


def answered(trainer: rpc.TeacherServiceStub, seed: int) -> None:
    """Asks until there is an answer, as trainers do: of very many new calls gRPC refuses some, whosever they are."""
    query = question(seed)
    request = wire.encode_query(query, seed)

    def ask() -> bool:
        try:
            reply = trainer.Score(request, metadata=BEARER, timeout=PATIENCE)
        except grpc.RpcError as error:
            assert from_status(error.code().name, "").retryable, error
            return False
        wire.decode_reply(reply, query, request)
        return True

    wait_until(ask)


@contextlib.asynccontextmanager
async def connections(address: str, count: int, speaks: bool = True) -> AsyncIterator[list[Connection]]:
    opened: list[Connection] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            each = await Connection.open(address, speaks)
            stack.push_async_callback(each.close)
            opened.append(each)
        yield opened


Flood = Callable[[str], Awaitable[None]]


def messages(body: bytes, calls: int, *metadata: tuple[str, str]) -> Flood:
    """This much of a message on many calls of each method, none of which ends."""

    async def flood(address: str) -> None:
        async with connections(address, FLOODING) as opened:
            for method in ALL:
                for connection in opened:
                    for _ in range(calls):
                        connection.call(method, memoryview(body), metadata)
                await asyncio.sleep(HOLD_SECONDS)

    return flood


async def bombs(address: str) -> None:
    packed = gzip.compress(bytes(BOMB_BYTES), 9)
    await messages(struct.pack(">BI", 1, len(packed)) + packed, 4, ("grpc-encoding", "gzip"))(address)


async def plain(address: str) -> None:
    await messages(struct.pack(">BI", 0, PLAIN_BYTES) + bytes(PLAIN_BYTES - 1), 8)(address)


async def calls(address: str) -> None:
    await messages(b"", 300)(address)


async def metadata(address: str) -> None:
    await messages(b"", 50, *((f"x-{i}", "y" * 4000) for i in range(20)))(address)


async def idle_connections(address: str) -> None:
    for speaks in (False, True):
        async with connections(address, 600, speaks):
            await asyncio.sleep(HOLD_SECONDS)


@pytest.mark.parametrize("flood", [bombs, plain, calls, metadata, idle_connections])
def test_strangers_cannot_make_it_hold_more_than_the_bound(
    flood: Flood, teacher: RunningTeacher, trainer: rpc.TeacherServiceStub, at_rest: int
) -> None:
    """A caller with a token is answered all the while; health answers, on a connection that was there before."""
    limit = message_limit(trainer)
    flooding = threading.Thread(target=lambda: asyncio.run(flood(teacher.address)))  # type: ignore[arg-type]
    with Memory(teacher.process.pid) as memory:
        flooding.start()
        try:
            seed = 0
            while flooding.is_alive():
                answered(trainer, seed := seed + 1)
                time.sleep(0.05)
        finally:
            flooding.join()
        wait_until(lambda: healthcheck.status(teacher.address) == "SERVING")
    print(
        f"\n| {flood.__name__} | {memory.before // MIB} | {memory.highest // MIB} | {memory.now // MIB} "
        f"| {(at_rest + bound(limit)) // MIB} | {seed} |"
    )
    assert seed > 0
    assert memory.highest - at_rest <= bound(limit)
    assert teacher.process.poll() is None
    assert samples(teacher.metrics)["teacher_in_flight_requests", ()] == 0


def test_idle_sockets_of_the_metrics_port_harm_nobody(tiny_teacher: Path, tmp_path: Path) -> None:
    """Hundreds of them, with 64 file descriptors: callers, health and scrapers are answered; no thread is added."""
    command = limited(tiny_teacher, "resource.RLIMIT_NOFILE, (64, 64)")
    with started(command, tmp_path / "log") as (process, _):
        ready = json.loads(first_line(process))
        threads = psutil.Process(process.pid).num_threads()
        host, port = ready["metrics"].rsplit(":", 1)
        with contextlib.ExitStack() as idle:
            for i in range(300):
                sock = idle.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex((host, int(port)))
                if i % 2:
                    with contextlib.suppress(OSError):
                        sock.send(b"GET /metrics HTTP/1.1\r\n")
                if i % 100 == 99:
                    assert healthcheck.status(ready["listening"]) == "SERVING"
                    assert info.ask(ready["listening"], PATIENCE, ChannelConfig()).weights_revision
            assert psutil.Process(process.pid).num_threads() <= threads + 4  # gRPC's own pollers come and go
            assert psutil.Process(process.pid).num_fds() < 64
        with urllib.request.urlopen(f"http://{ready['metrics']}/readyz", timeout=PATIENCE) as answer:
            assert answer.status == 200
    assert "64 open files allow 24 connections" in (tmp_path / "log").read_text()


def limited(teacher: Path, limit: str) -> list[str]:
    """A command that serves under a limit of resources."""
    code = f"import resource; resource.setrlimit({limit})\nfrom teacher_server.__main__ import main\nmain()"
    return [sys.executable, "-c", code, *serve_arguments(teacher)]


def serve_arguments(teacher: Path) -> list[str]:
    ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    return ["serve", "--teacher", str(teacher), *ports]


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process whose log goes to a file, which can be read meanwhile."""
    with log.open("w") as sink, log.open() as written:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sink, text=True, cwd=REPOSITORY, env=environment
        )
        try:
            yield process, written
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def plainly(teacher: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "teacher_server", *serve_arguments(teacher), *arguments]


def test_strangers_write_nothing_into_the_log(tiny_teacher: Path, tmp_path: Path) -> None:
    """Neither by calls that nobody serves, bytes that mean nothing and compression, nor by what is no HTTP/2."""
    with started(plainly(tiny_teacher), tmp_path / "log") as (process, written):
        address = json.loads(first_line(process))["listening"]
        before = written.read()
        with grpc.insecure_channel(address) as channel:
            for method in (*ALL, "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Nothing"):
                for data, kind in ((b"\xff", None), (bytes(9000), grpc.Compression.Gzip)):
                    with pytest.raises(grpc.RpcError):
                        list(channel.unary_stream(method, None, None)(data, compression=kind, timeout=PATIENCE))
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01" + bytes(300),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\njunkjunkjunk",
        ):
            with socket.create_connection(address.rsplit(":", 1)) as sock:
                sock.sendall(junk)
                sock.settimeout(PATIENCE)
                with contextlib.suppress(OSError):
                    while sock.recv(4096):
                        pass
        assert healthcheck.status(address) == "SERVING"
        assert (before.count("\n") > 0, written.read()) == (True, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_loading_ends_it_with_one_line(tiny_teacher: Path, tmp_path: Path, number: int) -> None:
    """At once: the thread that loads, held up here, is not waited for."""
    code = (
        "import sys, threading, types\n"
        "engine = types.ModuleType('teacher_server.engine.engine')\n"
        "engine.load = lambda *_: threading.Event().wait()\n"
        "sys.modules['teacher_server.engine.engine'] = engine\n"
        "import teacher_server.engine\n"
        "teacher_server.engine.engine = engine\n"
        "from teacher_server.__main__ import main\n"
        "sys.exit(main())"
    )
    with started([sys.executable, "-c", code, *serve_arguments(tiny_teacher)], tmp_path / "log") as (process, written):
        wait_until(lambda: "loading" in written.read())
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        (line,) = written.read().splitlines()
        assert line.endswith("stopped before the teacher was loaded")


def test_sighup_drains(tiny_teacher: Path, tmp_path: Path) -> None:
    with started(plainly(tiny_teacher), tmp_path / "log") as (process, written):
        assert first_line(process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0
        assert "drained" in written.read()


def test_sighup_is_ignored_where_nohup_said_so(tiny_teacher: Path, tmp_path: Path) -> None:
    with started(["nohup", *plainly(tiny_teacher)], tmp_path / "log") as (process, _):
        address = json.loads(first_line(process))["listening"]
        process.send_signal(signal.SIGHUP)
        assert healthcheck.status(address) == "SERVING"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
