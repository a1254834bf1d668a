"""What a supervisor is told, by a socket that stands in for systemd's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, start_teacher

from shared.errors import ConfigError
from teacher_server.address import Address
from teacher_server.client import healthcheck
from teacher_server.serve import notify, server
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.lifecycle import State

PATIENCE = 60


@contextlib.contextmanager
def supervisor(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket of this name, which the environment names: @name has no file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def fields(listening: socket.socket) -> dict[str, str]:
    """The next message."""
    return dict(line.split("=", 1) for line in listening.recv(4096).decode().split("\n"))


@pytest.mark.parametrize("name", ["{tmp}/notify", "@lmtad-hoser-{pid}"])
def test_every_state_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with supervisor(name.format(tmp=tmp_path, pid=os.getpid()), monkeypatch) as listening:
        for state in State:
            notify.tell(state)
            told = fields(listening)
            assert ("READY" in told) == (state is State.SERVING)
            assert ("STOPPING" in told) == (state in (State.DRAINING, State.STOPPED))
            assert told["STATUS"]


def test_without_a_supervisor_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for value in (None, ""):
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False) if value is None else monkeypatch.setenv("NOTIFY_SOCKET", "")
        notify.tell(State.SERVING)
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify.tell(State.SERVING)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "NOTIFY_SOCKET" in caplog.text


@pytest.mark.integration
def test_a_daemon_is_ready_when_it_serves_and_says_that_it_stops(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervisor(str(tmp_path / "notify"), monkeypatch) as listening, start_teacher(tiny_teacher) as teacher:
        assert set(fields(listening)) == {"STATUS"}  # it loads
        ready = fields(listening)
        assert ready["READY"] == "1"
        assert healthcheck.status(teacher.address) == "SERVING"
        teacher.process.send_signal(signal.SIGTERM)
        assert fields(listening)["STOPPING"] == "1"
        assert teacher.process.wait(PATIENCE) == 0


@pytest.mark.integration
def test_a_daemon_that_cannot_load_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "teacher").write_bytes(b"no teacher")
    command = [sys.executable, "-m", "teacher_server", "serve", "--teacher", str(tmp_path / "teacher")]
    with supervisor(str(tmp_path / "notify"), monkeypatch) as listening:
        assert subprocess.run(command, capture_output=True, cwd=REPOSITORY).returncode == 2
        listening.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                assert "READY" not in fields(listening)


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["660", "0600"])
def test_a_socket_has_the_permissions_that_it_is_given(mode: str, tiny_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.sock"
    with start_teacher(tiny_teacher, f"socket_mode={mode}", listen=f"unix:{path}") as teacher:
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        assert healthcheck.status(teacher.address) == "SERVING"


def test_permissions_that_cannot_be_set_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot give unix:.* the permissions 660: No such file"):
        server._permit(Address.parse(f"unix:{tmp_path}/gone"), "660")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"listen": "127.0.0.1:0", "socket_mode": "660"}, "socket_mode is for listen=unix:PATH"),
        ({"listen": "unix:/x", "socket_mode": "999"}, "three octal digits"),
        ({"listen": "unix:/x", "socket_mode": "rw"}, "three octal digits"),
        ({"listen": "unix:/x", "socket_mode": 432}, "in a YAML file: '660'"),  # 0660 there
    ],
)
def test_other_permissions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig.model_validate({"teacher": "t", **settings})
