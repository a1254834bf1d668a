"""`info` on files and on a running server."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import TeacherStarter

from shared import config, teacher_file
from shared.errors import ConfigError, FileFormatError, Unavailable
from teacher_server.client import info
from teacher_server.client.config import InfoConfig


def describe(capsys: pytest.CaptureFixture[str], **settings: Any) -> dict[str, Any]:
    info.run(config.validate(InfoConfig, settings))
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_file(tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = teacher_file.read_header(tiny_teacher)
    described = describe(capsys, teacher=tiny_teacher)
    assert described["revision"] == header.revision
    assert described["fingerprint"] == header.tokeniser.fingerprint
    assert described["vocabulary"]["sot"] == header.tokeniser.vocabulary.sot
    assert described["grid"]["rows"] == 5
    assert described["architecture"]["block_size"] == 16


@pytest.mark.integration
def test_a_server(tiny_teacher: Path, running_teacher: TeacherStarter, capsys: pytest.CaptureFixture[str]) -> None:
    on_disk = describe(capsys, teacher=tiny_teacher)
    with running_teacher(tiny_teacher) as server:
        served = describe(capsys, address=server.address)
    for key in ("revision", "fingerprint", "vocabulary", "grid"):
        assert served[key] == on_disk[key]
    assert served["compute_dtype"] == "float32"
    assert served["limits"]["max_window"] == 15


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nobody"):
        info.run(InfoConfig(address=f"unix:{tmp_path / 'nobody'}", timeout=2))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no teacher file"):
        info.run(InfoConfig(teacher=tmp_path / "none"))


@pytest.mark.parametrize("settings", [{}, {"teacher": "a", "address": "localhost:1"}])
def test_exactly_one_of_file_and_server(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give either --teacher FILE or --address HOST:PORT"):
        config.validate(InfoConfig, settings)


@pytest.mark.integration
def test_a_server_that_is_not_there_yet_is_waited_for(
    tiny_teacher: Path, tmp_path: Path, running_teacher: TeacherStarter, capsys: pytest.CaptureFixture[str]
) -> None:
    """`info --wait` begins before `serve`, and is answered once the teacher is loaded."""
    address = f"unix:{tmp_path / 'socket'}"
    found: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: found.append(describe(capsys, address=address, wait=240)))
    asking.start()
    with running_teacher(tiny_teacher, listen=address):
        asking.join()
    assert found[0]["revision"] == teacher_file.read_header(tiny_teacher).revision
