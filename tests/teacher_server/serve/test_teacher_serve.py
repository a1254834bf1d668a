"""The daemon as a process: answers, limits, health, drain, exit codes."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors
import torch
from conftest import REPOSITORY, RunningTeacher, TeacherStarter, reference_path, start_teacher
from support.scrapes import samples, wait_until

from shared import teacher_file, wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.__main__ import main
from teacher_server.client import healthcheck
from teacher_server.lmtad.model import load

pytestmark = pytest.mark.integration

PATIENCE = 60
"""Seconds until a server that does not answer fails the test."""

MEND = "choose another with --listen, or --metrics-listen for metrics"


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Iterator[RunningTeacher]:
    """A server that the tests of this module share, and leave alive."""
    with start_teacher(tiny_teacher, "max_message_bytes=4096") as running:
        yield running


def stub(address: str) -> rpc.TeacherServiceStub:
    return rpc.TeacherServiceStub(grpc.insecure_channel(address))


def windows(histories: list[list[int]], candidates: list[list[int]]) -> ScoreQuery:
    return ScoreQuery(
        HistoryMode.WINDOW,
        np.array([token for row in histories for token in row], np.int32),
        np.array([len(row) for row in histories], np.int32),
        np.array([token for row in candidates for token in row], np.int32),
        np.array([len(row) for row in candidates], np.int32),
    )


def heavy_query(seed: int, rows: int = 3000, length: int = 15) -> ScoreQuery:
    """Windows that differ from each other and from those of other seeds."""
    random = np.random.default_rng(seed)
    return ScoreQuery(
        HistoryMode.WINDOW,
        random.integers(0, 40, rows * length).astype(np.int32),
        np.full(rows, length, np.int32),
        random.integers(0, 40, rows * 3).astype(np.int32),
        np.full(rows, 3, np.int32),
    )


def refuse(*arguments: str) -> str:
    """Runs a command that must exit with 2 and one line on stderr; returns the line."""
    result = subprocess.run(
        [sys.executable, "-m", "teacher_server", *arguments, "--log-level", "error"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=REPOSITORY,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def test_ready_line_names_addresses_and_model(teacher: RunningTeacher, tiny_teacher: Path) -> None:
    header = teacher_file.read_header(tiny_teacher)
    assert teacher.ready["weights_revision"] == header.revision
    assert teacher.ready["fingerprint"] == header.tokeniser.fingerprint
    info = wire.decode_info(stub(teacher.address).GetTeacher(pb.GetTeacherRequest()))
    assert info.weights_revision == header.revision
    assert info.tokeniser.fingerprint == header.tokeniser.fingerprint
    assert healthcheck.status(teacher.address) == "SERVING"


def test_answers_those_of_the_public_implementation(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    reference = np.load(reference_path("lmtad", "reference.npz"))
    checkpoint = reference_path("lmtad", "training_checkpoint.pt")
    out = tmp_path / "teacher.safetensors"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0

    random = np.random.default_rng(0)
    lengths = reference["history_length"]
    histories = [row[:n].tolist() for row, n in zip(reference["history"], lengths, strict=True)]
    candidates = [random.integers(0, 99, random.integers(1, 9)).tolist() for _ in histories]
    chosen = [logits[row] for logits, row in zip(reference["last_logits"].astype(np.float64), candidates, strict=True)]
    expected = [logits - np.log(np.exp(logits).sum()) for logits in chosen]

    with running_teacher(out) as server:
        client = stub(server.address)
        query = windows(histories, candidates)
        unary = wire.decode_reply(client.Score(wire.encode_query(query, 1)), query)
        np.testing.assert_allclose(unary.log_probs, np.concatenate(expected), rtol=0, atol=2e-3)

        queries = [windows([history], [row]) for history, row in zip(histories, candidates, strict=True)]
        requests = (pb.StreamScoreRequest(request=wire.encode_query(one, i)) for i, one in enumerate(queries))
        answers = {answer.request_id: answer.response for answer in client.StreamScore(requests)}
        for i, one in enumerate(queries):
            streamed = wire.decode_reply(answers[i], one).log_probs
            np.testing.assert_allclose(streamed, expected[i], rtol=0, atol=2e-3)
        together = np.concatenate([wire.decode_reply(answers[i], one).log_probs for i, one in enumerate(queries)])
        assert np.array_equal(together, unary.log_probs)  # bit for bit, whatever shared the batch


def test_the_end_of_a_trip_has_the_probability_that_the_model_gives_it(
    teacher: RunningTeacher, tiny_teacher: Path
) -> None:
    """By definition: a softmax of the plain model's logits in float64; and the same bits one by one."""
    header, weights = teacher_file.read(tiny_teacher)
    vocabulary, model = header.tokeniser.vocabulary, load(header, weights).eval()
    histories: list[list[int]] = [[], [3], [1, 2, 3, 4], [7] * 15, [39, 0]]
    candidates = [[0, vocabulary.eot], [vocabulary.eot], [5, vocabulary.eot, 6], [vocabulary.eot, 1, 2], [1, 2, 41]]
    query = dataclasses.replace(windows(histories, candidates), include_candidate_mass=True)
    client = stub(teacher.address)
    reply = wire.decode_reply(client.Score(wire.encode_query(query, 1)), query)
    assert reply.candidate_mass is not None
    answers = np.split(reply.log_probs, np.cumsum(query.candidate_lengths)[:-1])
    for history, tokens, answer, mass in zip(histories, candidates, answers, reply.candidate_mass, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[vocabulary.sot, *history]]))[0, -1].double().numpy()
        log_probs = (logits - np.logaddexp.reduce(logits))[tokens]
        np.testing.assert_allclose(answer, log_probs - np.logaddexp.reduce(log_probs), rtol=1e-3, atol=2e-3)
        assert float(mass) == pytest.approx(np.exp(log_probs).sum(), abs=1e-3)
        one = windows([history], [tokens])
        assert wire.decode_reply(client.Score(wire.encode_query(one, 2)), one).log_probs.tobytes() == answer.tobytes()


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        (windows([[1, 40]], [[1]]), "INVALID_ARGUMENT", "history_tokens[1]: 40 is not a cell"),
        (windows([[1]], [[1, -1]]), "INVALID_ARGUMENT", "candidate_tokens[1]: -1 is not a cell"),
        (windows([[1, 41]], [[41]]), "INVALID_ARGUMENT", "history_tokens[1]: 41 is not a cell"),
        (windows([[1] * 16], [[1]]), "INVALID_ARGUMENT", "history_lengths[0]: 16"),
        (heavy_query(0), "RESOURCE_EXHAUSTED", ""),
    ],
    ids=["history", "candidate", "end in a history", "window", "message"],
)
def test_limits(teacher: RunningTeacher, query: ScoreQuery, code: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub(teacher.address).Score(wire.encode_query(query, 1))
    assert caught.value.code().name == code
    assert message in (caught.value.details() or "")
    stub(teacher.address).Score(wire.encode_query(windows([[1]], [[2, 3]]), 1))


def test_metrics_over_http_count(teacher: RunningTeacher) -> None:
    before = samples(teacher.metrics)
    client = stub(teacher.address)
    query = windows([[1, 2], []], [[3, 4], [5]])
    for i in range(5):
        client.Score(wire.encode_query(query, i))
    list(client.StreamScore(iter([pb.StreamScoreRequest(request=wire.encode_query(query, 1))])))
    after = samples(teacher.metrics)

    def grown(name: str, *labels: str) -> float:
        return after[name, labels] - before.get((name, labels), 0)

    assert grown("teacher_requests_total", "OK", "Score") == 5
    assert grown("teacher_requests_total", "OK", "StreamScore") == 1
    assert grown("teacher_positions_total", "miss") == grown("teacher_scored_positions_total") == 2
    assert grown("teacher_positions_total", "hit") == 10
    assert grown("teacher_batch_positions_sum") == 2
    assert after["teacher_in_flight_requests", ()] == 0
    (info,) = [labels for name, labels in after if name == "teacher_model_info"]
    assert teacher.ready["weights_revision"] in info
    assert any(name == "process_cpu_seconds_total" for name, _ in after)


def test_restarted_teacher_is_warm_and_answers_the_same_bits(
    tmp_path: Path, tiny_teacher: Path, running_teacher: TeacherStarter
) -> None:
    kept, query = f"cache.file={tmp_path / 'answers'}", heavy_query(0, rows=200)
    answers, hits = [], []
    for _ in range(2):
        with running_teacher(tiny_teacher, kept) as server:
            answers.append(stub(server.address).Score(wire.encode_query(query, 1)).log_probs)
            hits.append(samples(server.metrics)["teacher_positions_total", ("hit",)])
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == 0
    assert answers[0] == answers[1]
    assert hits == [0, 200]


def kept_rows(file: Path) -> int:
    """Of a daemon's answers; whoever replaces the file does so at once."""
    if not file.exists():
        return 0
    with safetensors.safe_open(file, framework="np") as kept:
        return len(kept.get_tensor("key_words"))


def test_a_killed_teacher_has_lost_an_interval_at_most(
    tmp_path: Path, tiny_teacher: Path, running_teacher: TeacherStarter
) -> None:
    """What was kept at an interval is there after SIGKILL, and nothing is left behind by a writer that was killed."""
    file, early, late = tmp_path / "kept" / "answers", heavy_query(0, rows=200), heavy_query(1, rows=300)
    settings = [f"cache.file={file}", "cache.save_seconds=0.05"]
    with running_teacher(tiny_teacher, *settings) as server:
        answer = stub(server.address).Score(wire.encode_query(early, 1)).log_probs
        wait_until(lambda: kept_rows(file) == 200)
        stub(server.address).Score(wire.encode_query(late, 2))
        server.process.kill()
        server.process.wait(PATIENCE)
    (tmp_path / "kept" / ".answers.leftover").write_bytes(b"of a daemon that was killed while it wrote")
    with running_teacher(tiny_teacher, *settings) as server:
        assert [path.name for path in file.parent.iterdir()] == ["answers"]
        assert stub(server.address).Score(wire.encode_query(early, 3)).log_probs == answer
        assert samples(server.metrics)["teacher_positions_total", ("hit",)] == 200


def test_caller_that_dies_leaves_no_trace(teacher: RunningTeacher) -> None:
    code = f"""
import grpc, os, sys
from shared.rpc.teacher.v1 import teacher_pb2 as pb, teacher_pb2_grpc as rpc
call = rpc.TeacherServiceStub(grpc.insecure_channel({teacher.address!r})).StreamScore(iter(
    [pb.StreamScoreRequest(request=pb.ScoreRequest(mode=1, request_id=i)) for i in range(50)]))
next(call)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=PATIENCE, check=True)
    wait_until(lambda: samples(teacher.metrics)["teacher_in_flight_requests", ()] == 0)
    stub(teacher.address).Score(wire.encode_query(windows([[1]], [[2, 3]]), 1))


def in_flight(server: RunningTeacher, count: int) -> tuple[rpc.TeacherServiceStub, list[Any]]:
    """Heavy requests that have all reached the server."""
    client = stub(server.address)
    calls = [client.Score.future(wire.encode_query(heavy_query(i), i)) for i in range(count)]

    def arrived() -> bool:
        seen = samples(server.metrics)
        done = seen.get(("teacher_requests_total", ("OK", "Score")), 0)
        return seen["teacher_in_flight_requests", ()] + done == count

    wait_until(arrived)
    return client, calls


def test_sigterm_drains(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    with running_teacher(tiny_teacher, "batching.max_batch_tokens=4096") as server:
        client, calls = in_flight(server, 40)
        assert not all(call.done() for call in calls)
        server.process.send_signal(signal.SIGTERM)
        answers = [call.result(timeout=PATIENCE) for call in calls]
        assert [answer.request_id for answer in answers] == list(range(40))
        assert server.process.wait(PATIENCE) == 0
        with pytest.raises(grpc.RpcError) as caught:
            client.Score(wire.encode_query(heavy_query(0), 1))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_while_draining_health_says_so_and_a_second_signal_ends_it(
    tiny_teacher: Path, running_teacher: TeacherStarter
) -> None:
    with running_teacher(tiny_teacher, "batching.max_batch_tokens=4096") as server:
        client, calls = in_flight(server, 60)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: healthcheck.status(server.address) == "NOT_SERVING")
        with pytest.raises(grpc.RpcError) as caught:
            client.Score(wire.encode_query(windows([[1]], [[2]]), 1))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == -signal.SIGTERM
        assert any(call.exception(timeout=PATIENCE) for call in calls)


def test_drain_that_takes_too_long_is_given_up(tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    with running_teacher(tiny_teacher, "drain_seconds=0.01", "batching.max_batch_tokens=4096") as server:
        _, calls = in_flight(server, 60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 1
        assert any(call.exception(timeout=PATIENCE) for call in calls)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_exits_at_once_in_spite_of_an_open_stream(
    tiny_teacher: Path, running_teacher: TeacherStarter, number: int
) -> None:
    with running_teacher(tiny_teacher, "drain_seconds=600") as server:
        request = wire.encode_query(windows([[1]], [[2, 3]]), 1)
        feeding = futures.Future[None]()

        def requests() -> Iterator[pb.StreamScoreRequest]:
            yield pb.StreamScoreRequest(request=request)
            feeding.result(PATIENCE)

        call = stub(server.address).StreamScore(requests())
        assert next(call).response.request_id == 1
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 0
        feeding.set_result(None)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_unix_socket(tmp_path: Path, tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    path = f"unix:{tmp_path}/teacher.sock"
    with running_teacher(tiny_teacher, "metrics_listen=off", listen=path) as server:
        assert (server.address, server.metrics) == (path, None)
        assert stub(path).Score(wire.encode_query(windows([[1]], [[2, 3]]), 8)).request_id == 8
        line = refuse("serve", "--teacher", str(tiny_teacher), "--listen", path)
        assert line == f"teacher-server serve: cannot listen on {path}: it is in use; {MEND}"


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
def test_port_in_use_is_one_line(tiny_teacher: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = {"--listen": "127.0.0.1:0", "--metrics-listen": "127.0.0.1:0"} | {flag: address}
        line = refuse("serve", "--teacher", str(tiny_teacher), *[part for pair in ports.items() for part in pair])
    assert line == f"teacher-server serve: cannot listen on {address}: it is in use; {MEND}"


def test_two_servers_do_not_share_a_port(tiny_teacher: Path, teacher: RunningTeacher) -> None:
    line = refuse("serve", "--teacher", str(tiny_teacher), "--listen", teacher.address, "metrics_listen=off")
    assert "it is in use" in line


def test_missing_and_damaged_teachers_are_one_line(tmp_path: Path, tiny_teacher: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny_teacher.read_bytes()[:-100])
    for path in (tmp_path / "none.safetensors", damaged):
        line = refuse("serve", "--teacher", str(path), "--listen", "127.0.0.1:0", "metrics_listen=off")
        assert str(path) in line
