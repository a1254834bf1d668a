"""The gRPC client against a scripted server: one contract, both transports."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from support.fakes import scores_of

from shared import wire
from shared.errors import (
    CompatibilityError,
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    TeacherError,
    Unavailable,
)
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.distill import connection, named, outage, retry
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig

LIMITS = wire.Limits(
    max_window=8,
    max_message_bytes=2**20,
    max_queued_positions=100,
    max_request_positions=100,
    max_request_candidates=1000,
)


def query_of(seed: int, positions: int = 3) -> ScoreQuery:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4, positions).astype(np.int32)
    tokens = rng.integers(0, 20, int(lengths.sum())).astype(np.int32)
    history = rng.integers(0, 20, positions).astype(np.int32)
    return ScoreQuery(HistoryMode.WINDOW, history, np.ones(positions, np.int32), tokens, lengths)


def spent(request: pb.ScoreRequest) -> int:
    return max(1, len(request.candidate_lengths) // 4)


class ScriptedTeacher(rpc.TeacherServiceServicer):
    """Answers rightly, except where its script says otherwise.

    `script` is asked with the number of the attempt, counted over all requests; it returns
    None to answer, a status to refuse with, "lose" to break the call, "stall", or a function that spoils the answer.
    """

    def __init__(self) -> None:
        self.script: Callable[[int], Any] = lambda attempt: None
        self.revision = "r1"
        self.attempts = 0
        self.under_way = 0
        self.most_under_way = 0
        self.pause = 0.0
        self.credit = 10_000
        self.callers: set[str] = set()
        self.scored: list[tuple[int, ...]] = []
        self.nonsense = 0

    async def GetTeacher(self, request: Any, context: Any) -> pb.GetTeacherResponse:  # noqa: N802
        tokeniser = Tokeniser(Vocabulary.full(20), None)
        info = wire.TeacherInfo(self.revision, tokeniser, 1, 1, 1, 9, 1, LIMITS, "float32", "cpu", "test")
        message = wire.encode_info(info)
        if self.nonsense:
            self.nonsense -= 1
            message.vocabulary.pad = 0
            message.checksum = wire.checksum(message)
        return message

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        verdict = self._next()
        if isinstance(verdict, grpc.StatusCode):
            await context.abort(verdict, "scripted")
        return await self._answer(request, verdict)

    async def StreamScore(self, requests: Any, context: Any) -> AsyncIterator[pb.StreamScoreResponse]:  # noqa: N802
        answers: asyncio.Queue[pb.StreamScoreResponse | Exception] = asyncio.Queue()
        tasks = set()
        first_grant = iter([self.credit])

        async def handle(request: pb.ScoreRequest, verdict: Any) -> None:
            if isinstance(verdict, grpc.StatusCode):
                error = pb.StreamError(code=verdict.value[0], message="scripted")
                grant = 3 + next(first_grant, 0)
                answers.put_nowait(pb.StreamScoreResponse(request_id=request.request_id, error=error, credit=grant))
            else:
                response = await self._answer(request, verdict)
                grant = spent(request) + next(first_grant, 0)
                answers.put_nowait(
                    pb.StreamScoreResponse(request_id=request.request_id, response=response, credit=grant)
                )

        async def read() -> None:
            async for message in requests:
                verdict = self._next()
                if verdict == "lose":
                    answers.put_nowait(ConnectionError())
                    return
                tasks.add(asyncio.create_task(handle(message.request, verdict)))

        self.callers.update(value for key, value in context.invocation_metadata() if key == "teacher-client")
        reader = asyncio.create_task(read())
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, Exception):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
                else:
                    yield answer
        finally:
            for task in [reader, *tasks]:
                task.cancel()

    def _next(self) -> Any:
        self.attempts += 1
        return self.script(self.attempts)

    async def _answer(self, request: pb.ScoreRequest, verdict: Any) -> pb.ScoreResponse:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(3600 if verdict == "stall" else self.pause)
        self.under_way -= 1
        query = wire.decode_query(request)
        self.scored += [
            tuple(row.tolist()) for row in np.split(query.history_tokens, np.cumsum(query.history_lengths)[:-1])
        ]
        reply = ScoreReply(scores_of(query), None, self.revision, 1, 2)
        response = wire.encode_reply(reply, request)
        if callable(verdict):
            verdict(response)
        return response


class Spoiler(grpc.aio.ServerInterceptor):
    """Sends bytes that are no message instead of some answers to Score and StreamScore."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if "Score" not in details.method:
            return handler
        plain = handler.response_serializer

        def serialize(message: Any) -> bytes:
            return b"\xff\xff" if next(self.server.spoilt, False) else plain(message)

        return handler._replace(response_serializer=serialize)


class Server:
    """The scripted teacher on a loop of its own."""

    def __init__(self) -> None:
        self.teacher = ScriptedTeacher()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.address = ""
        self.spoilt: Iterator[bool] = iter(())
        self.run(self._start())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def _start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(interceptors=[Spoiler(self)])
        rpc.add_TeacherServiceServicer_to_server(self.teacher, self.server)
        bound = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        self.address = f"127.0.0.1:{bound}"

    def restart(self) -> None:
        """Stops at once, breaking every call, and listens again on the same port."""
        port = int(self.address.rpartition(":")[2])
        self.run(self.server.stop(None))
        self.run(self._start(port))

    def stop(self) -> None:
        self.run(self.server.stop(None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(params=["stream", "unary"])
def connect(request: pytest.FixtureRequest, server: Server) -> Iterator[Callable[..., GrpcTeacher]]:
    opened: list[GrpcTeacher] = []

    def open_client(addresses: str = "", **changed: Any) -> GrpcTeacher:
        config = ClientConfig(**{"transport": request.param, "retry_seconds": 10, "connect_seconds": 5, **changed})
        opened.append(GrpcTeacher(addresses or server.address, config))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


Connect = Callable[..., GrpcTeacher]


def check_all(client: GrpcTeacher, count: int) -> None:
    queries = [query_of(seed) for seed in range(count)]
    futures = [client.submit(query) for query in queries]
    for query, future in zip(queries, futures, strict=True):
        np.testing.assert_array_equal(future.result(20).log_probs, scores_of(query))


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_each_query_gets_its_own_answer(server: Server, connect: Connect) -> None:
    client = connect()
    assert client.info.weights_revision == "r1"
    check_all(client, 50)
    assert server.teacher.attempts == 50


def test_retries_what_may_succeed_later(server: Server, connect: Connect) -> None:
    """Every second attempt is refused, for all retryable reasons in turn."""
    codes = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
    server.teacher.script = lambda attempt: codes[attempt // 2 % 3] if attempt % 2 else None
    check_all(connect(), 12)


def test_believes_a_refusal_that_is_repeated(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidRequest, match="scripted"):
        connect().submit(query_of(0)).result(20)
    assert server.teacher.attempts == 3


def test_a_query_beyond_the_teacher_s_limits_is_cut_and_answered_as_a_whole(server: Server, connect: Connect) -> None:
    query = query_of(0, positions=LIMITS.max_request_positions * 3 + 1)
    np.testing.assert_array_equal(connect().submit(query).result(20).log_probs, scores_of(query))
    assert server.teacher.attempts == 4


def test_a_query_that_is_cut_by_bytes_fills_messages_that_are_sent(server: Server, connect: Connect) -> None:
    rows = 90
    long = np.full(rows, 9_973, np.int32)  # 26 of them fill a message but for a few hundred bytes
    query = dataclasses.replace(query_of(0, rows), history_tokens=np.zeros(long.sum(), np.int32), history_lengths=long)
    np.testing.assert_array_equal(connect().submit(query).result(20).log_probs, scores_of(query))
    assert server.teacher.attempts == 4


def test_an_oversize_history_is_refused_before_it_is_sent(server: Server, connect: Connect) -> None:
    length = np.array([300_000], np.int32)
    query = ScoreQuery(HistoryMode.WINDOW, np.zeros(300_000, np.int32), length, np.ones(2, np.int32), length // 150_000)
    with pytest.raises(ConfigError, match=r"above the teacher's limit of 1048576; serve with a larger max_message"):
        connect().submit(query).result(20)
    assert server.teacher.attempts == 0
    check_all(connect(), 2)


def test_gives_up_after_the_retry_time(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(TeacherError, match="attempt"):
        connect(retry_seconds=0.2).submit(query_of(0)).result(20)
    assert server.teacher.attempts > 1


def test_a_stalled_attempt_is_repeated_on_the_same_connection(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: "stall" if attempt in (1, 3) else None
    check_all(connect(deadline_seconds=0.3), 5)


def test_a_stalled_teacher_ends_in_a_deadline(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: "stall"
    with pytest.raises(DeadlineExceeded):
        connect(deadline_seconds=0.1, retry_seconds=0.2).submit(query_of(0)).result(20)


def test_a_restarted_teacher_goes_unnoticed(server: Server, connect: Connect) -> None:
    client = connect(max_in_flight=4)
    server.teacher.pause = 0.02
    queries = [query_of(seed) for seed in range(40)]
    futures = [client.submit(query) for query in queries]
    futures[3].result(20)
    server.restart()
    for query, future in zip(queries, futures, strict=True):
        np.testing.assert_array_equal(future.result(20).log_probs, scores_of(query))


def test_bounds_what_is_in_flight(server: Server, connect: Connect) -> None:
    server.teacher.pause = 0.02
    check_all(connect(max_in_flight=3), 20)
    assert server.teacher.most_under_way == 3


def test_refuses_other_weights_in_the_middle(server: Server, connect: Connect) -> None:
    client = connect()
    check_all(client, 1)
    server.teacher.revision = "r2"
    with pytest.raises(CompatibilityError, match="changed its weights from r1 to r2"):
        client.submit(query_of(0)).result(20)


def test_several_addresses_share_the_load_and_stand_in(server: Server, connect: Connect) -> None:
    other = Server()
    try:
        client = connect(f"{server.address},{other.address}")
        check_all(client, 20)
        first, second = sorted(server.teacher.scored), sorted(other.teacher.scored)
        assert len(first) + len(second) == 60 and min(len(first), len(second)) > 0
        other.run(other.server.stop(None))
        check_all(client, 20)
        assert len(server.teacher.scored) == len(first) + 60
        port = int(other.address.rpartition(":")[2])
        other.run(other._start(port))
        other.teacher.scored.clear()
        wait_until(lambda: [check_all(client, 20)] and len(other.teacher.scored) > 0)
        other.teacher.scored.clear()
        check_all(client, 20)
        assert sorted(other.teacher.scored) == second, "the same rows as before it left"
    finally:
        other.stop()


def test_several_addresses_must_serve_the_same_weights(server: Server, connect: Connect) -> None:
    other = Server()
    try:
        other.teacher.revision = "r2"
        with pytest.raises(CompatibilityError, match="serves r2"):
            connect(f"{server.address},{other.address}")
    finally:
        other.stop()


def test_absent_teacher_is_waited_for_then_reported(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    caplog.set_level("INFO")
    with pytest.raises(Unavailable, match=rf"no teacher at {address} within 0\.5 s"):
        GrpcTeacher(address, ClientConfig(connect_seconds=0.5))
    assert "waiting up to" in caplog.text


def go_away(server: Server) -> int:
    """It answers no more; returns the port on which it may be started again."""
    server.run(server.server.stop(None))
    return int(server.address.rpartition(":")[2])


def test_waits_for_a_teacher_that_comes_late(server: Server, connect: Connect) -> None:
    port = go_away(server)
    timer = threading.Timer(0.5, lambda: server.run(server._start(port)))
    timer.start()
    check_all(connect(connect_seconds=20), 3)
    timer.join()


def test_broken_streams_lose_nothing(server: Server) -> None:
    server.teacher.script = lambda attempt: "lose" if attempt in (2, 5, 9) else None
    client = GrpcTeacher(server.address, ClientConfig(transport="stream", retry_seconds=10))
    try:
        check_all(client, 12)
    finally:
        client.close()


def test_close_leaves_no_thread_and_cancels_what_waits(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: "stall"
    client = connect()
    future = client.submit(query_of(0))
    client.close()
    client.close()
    assert future.cancelled() or future.exception() is not None
    assert not any(thread.name == "teacher-client" for thread in threading.enumerate())


def test_sends_wait_for_credit_and_one_may_always_go(server: Server) -> None:
    server.teacher.credit = 7  # two requests of three positions
    server.teacher.pause = 0.005
    client = GrpcTeacher(server.address, ClientConfig(name="me"))
    try:
        check_all(client, 20)
        assert server.teacher.most_under_way == 2
        assert server.teacher.callers == {"me"}
        big = query_of(1, positions=50)
        np.testing.assert_array_equal(client.submit(big).result(20).log_probs, scores_of(big))
    finally:
        client.close()


def test_a_teacher_that_comes_back_with_other_weights_is_refused(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    other = Server()
    try:
        client = connect(f"{server.address},{other.address}")
        check_all(client, 5)
        other.teacher.revision = "r2"
        other.restart()
        other.teacher.scored.clear()
        wait_until(lambda: [check_all(client, 5)] and "changed its weights from r1 to r2" in caplog.text)
        other.teacher.scored.clear()
        check_all(client, 20)
        assert other.teacher.scored == []
        server.teacher.revision = "r3"
        with pytest.raises(CompatibilityError, match=r"r1 to r2.*r1 to r3|r1 to r3.*r1 to r2"):
            client.submit(query_of(0)).result(20)
    finally:
        other.stop()


def test_a_teacher_that_is_absent_at_the_start_joins(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    other = Server()
    try:
        port = int(other.address.rpartition(":")[2])
        other.run(other.server.stop(None))
        client = connect(f"{server.address},{other.address}")
        assert "going on without" in caplog.text and other.address in caplog.text
        check_all(client, 5)
        other.run(other._start(port))
        wait_until(lambda: [check_all(client, 5)] and other.teacher.scored)
    finally:
        other.stop()


def test_a_name_of_several_teachers(server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "RENEW_SECONDS", 0.2)
    other = Server()
    try:
        client = connect(f"ipv4:{server.address},{other.address}")
        check_all(client, 30)
        assert not set(server.teacher.scored) & set(other.teacher.scored)
        port = int(other.address.rpartition(":")[2])
        other.run(other.server.stop(None))
        check_all(client, 30)
        other.run(other._start(port))
        other.teacher.scored.clear()
        wait_until(lambda: [check_all(client, 30)] and other.teacher.scored)
        other.teacher.revision = "r2"
        with pytest.raises(CompatibilityError, match="serves weights r2, the run has r1"):
            check_all(client, 30)
    finally:
        other.stop()


@pytest.mark.parametrize(
    ("family", "hosts", "warns"),
    [(socket.AF_INET, 3, True), (socket.AF_INET, 1, False), (socket.AF_INET6, 2, True)],
)
def test_a_plain_host_of_several_addresses_is_warned_of(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    family: int, hosts: int, warns: bool,
) -> None:  # fmt: skip
    """One address in each of two families is what localhost has."""
    port = int(server.address.rpartition(":")[2])
    kind = (socket.SOCK_STREAM, 6, "")
    found = [(family, *kind, (f"host-{i}", port)) for i in range(hosts)] * 2
    found.append((socket.AF_UNSPEC, *kind, ("another family", port)))

    def resolve(host: str, *args: Any, **options: Any) -> list[Any]:
        assert host == "127.0.0.1"
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    GrpcTeacher(server.address, ClientConfig()).close()
    expected = f"{server.address} stands for {hosts} addresses, of which one is asked; write dns:///{server.address}"
    assert (expected in caplog.text) == warns


def test_a_name_that_resolves_to_one_host(server: Server, connect: Connect) -> None:
    check_all(connect(f"dns:///localhost:{server.address.rpartition(':')[2]}", streams=3), 10)


def test_a_teacher_that_leaves_in_the_middle_loses_nothing(server: Server, connect: Connect) -> None:
    others = [Server(), Server()]
    try:
        client = connect(",".join([server.address, *(other.address for other in others)]), max_in_flight=8)
        for each in (server, *others):
            each.teacher.pause = 0.01
        queries = [query_of(seed, positions=9) for seed in range(80)]
        futures = [client.submit(query) for query in queries]
        futures[5].result(20)
        others[0].restart()
        futures[40].result(20)
        others[1].run(others[1].server.stop(None))
        for query, future in zip(queries, futures, strict=True):
            assert future.result(20).log_probs.tobytes() == scores_of(query).tobytes()
    finally:
        for other in others:
            other.stop()


def garbage(kind: str) -> Callable[[pb.ScoreResponse], None]:
    """What makes an answer one that cannot be; its checksum is right unless that is what is wrong."""

    def spoil(response: pb.ScoreResponse) -> None:
        if kind == "short":
            response.log_probs = response.log_probs[:-2]
        elif kind == "nan":
            response.log_probs = np.full(len(response.log_probs) // 2, np.nan, "<f2").tobytes()
        elif kind == "positive":
            response.log_probs = np.full(len(response.log_probs) // 2, 1, "<f2").tobytes()
        elif kind == "mass":
            response.candidate_mass = b"\0\0"
        elif kind == "another's":
            response.request_checksum ^= 1
        response.checksum = wire.checksum(response) ^ (kind == "damaged")

    return spoil


@pytest.mark.parametrize("kind", ["short", "nan", "positive", "mass", "another's", "damaged"])
def test_garbage_is_asked_again(server: Server, connect: Connect, kind: str) -> None:
    server.teacher.script = lambda attempt: garbage(kind) if attempt in (1, 2, 5) else None
    client = connect()
    check_all(client, 6)
    assert server.teacher.attempts == 9
    assert client.failure_stats.retries >= 3


def test_a_teacher_that_answers_nothing_but_garbage_is_given_up(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: garbage("nan")
    with pytest.raises(InternalError, match=r"NaN or above 0 \(attempt 3\)"):
        connect(on_failure="abort").submit(query_of(0)).result(20)
    assert 1 <= server.teacher.attempts <= 3  # while it is not back, an attempt finds nobody to ask


def test_the_last_teachers_failure_names_its_cause_however_its_probes_fail(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of the error does not depend on whether a probe or the next attempt comes first."""
    client = connect(on_failure="abort")

    async def never_back(*_: Any) -> TeacherError:
        return Unavailable("connection refused")

    monkeypatch.setattr(connection, "get_info", never_back)
    server.teacher.script = lambda attempt: garbage("nan")
    with pytest.raises(InternalError, match=r"no teacher is left: .*NaN or above 0 \(attempt 3\)"):
        client.submit(query_of(0)).result(20)
    assert server.teacher.attempts == 1


def test_an_answer_that_is_no_message_is_asked_again(server: Server, connect: Connect) -> None:
    client = connect()
    server.spoilt = iter([False, True, True])
    check_all(client, 5)
    assert next(server.spoilt, None) is None
    assert client.failure_stats.retries >= 2


def test_abort_stops_after_some_attempts(server: Server, connect: Connect) -> None:
    client = connect(on_failure="abort", attempts=2, retry_seconds=0)
    check_all(client, 2)
    server.run(server.server.stop(None))
    begin = time.monotonic()
    with pytest.raises(TeacherError, match=r"\(attempt 2\)"):
        client.submit(query_of(0)).result(20)
    assert time.monotonic() - begin < 10


def test_abort_is_patient_with_a_full_queue(server: Server, connect: Connect) -> None:
    server.teacher.script = lambda attempt: grpc.StatusCode.RESOURCE_EXHAUSTED if attempt < 6 else None
    check_all(connect(on_failure="abort", attempts=1), 1)


def test_skip_waits_no_longer_than_it_may_and_then_asks_again(server: Server, connect: Connect) -> None:
    """A stalled teacher: the attempt ends when the request does, not at the attempt's own deadline."""
    client = connect(on_failure="skip", skip_after_seconds=0.5, deadline_seconds=60)
    server.teacher.script = lambda attempt: "stall"
    begin = time.monotonic()
    with pytest.raises(TeacherError):
        client.submit(query_of(0)).result(20)
    assert 0.3 < time.monotonic() - begin < 10
    server.teacher.script = lambda attempt: None
    wait_until(lambda: client.submit(query_of(1)).exception(20) is None)


@pytest.fixture
def prompt_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is said, and said again, within tenths of a second."""
    monkeypatch.setattr(outage, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(outage, "REMINDER_SECONDS", 0.1)


def test_wait_may_be_for_ever(server: Server, connect: Connect) -> None:
    client = connect(retry_seconds=0)
    port = go_away(server)
    future = client.submit(query_of(0))
    wait_until(lambda: client.failure_stats.retries >= 1)
    server.run(server._start(port))
    np.testing.assert_array_equal(future.result(20).log_probs, scores_of(query_of(0)))
    assert client.failure_stats.seconds > 0


@pytest.mark.usefixtures("prompt_news")
def test_an_outage_is_said_when_it_begins_goes_on_and_ends(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(retry_seconds=60)
    port = go_away(server)
    futures = [client.submit(query_of(seed)) for seed in range(3)]
    wait_until(lambda: re.search("still waiting for the teacher, [0-9]+ s so far, 3 requests", caplog.text) is not None)
    server.run(server._start(port))
    for future in futures:
        future.result(20)
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "waiting for the teacher (the run stops after 60 s); teacher at" in lines[0]
    wait_until(lambda: "the teacher answers again after" in caplog.text)


@pytest.mark.usefixtures("prompt_news")
def test_a_request_that_finds_nobody_waits_as_those_that_failed(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no attempt that could fail."""
    client = connect(retry_seconds=60)
    port = go_away(server)
    futures = [client.submit(query_of(0))]
    wait_until(lambda: "s so far, 1 request;" in caplog.text)
    futures += [client.submit(query_of(seed)) for seed in (1, 2)]
    wait_until(lambda: "s so far, 3 requests;" in caplog.text)
    server.run(server._start(port))
    for future in futures:
        future.result(20)
    wait_until(lambda: client.failure_stats.seconds > 0)


def test_a_short_failure_is_no_news(server: Server, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    server.teacher.script = lambda attempt: grpc.StatusCode.UNAVAILABLE if attempt % 2 else None
    check_all(connect(), 5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_teacher_that_describes_itself_wrongly_for_a_while_comes_back(server: Server, connect: Connect) -> None:
    client = connect()
    server.teacher.nonsense = 3
    server.restart()
    check_all(client, 3)
