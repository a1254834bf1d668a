"""Logs go to stderr, results to stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

from shared import log


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup()
    logging.getLogger("prepare").warning("%d roads", 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z W prepare: 3 roads\n", captured.err)


def test_a_line_is_read_back_as_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup()
    logging.getLogger("student_trainer.pipeline.run").info("7 of 8: test-seed42/report ...")
    line = capsys.readouterr().err.rstrip()
    assert line.endswith("run: 7 of 8: test-seed42/report ...")
    assert log.message_of(line) == "7 of 8: test-seed42/report ..."
    assert log.message_of("student-trainer demo-city: bad") == "student-trainer demo-city: bad"


def test_level_decides_what_is_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("warning")
    logging.getLogger("a").info("quiet")
    assert capsys.readouterr().err == ""
    log.setup("debug")
    logging.getLogger("a").debug("loud")
    logging.getLogger("urllib3").info("chatter")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_second_setup_does_not_double_the_lines(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.setup()
    log.setup()
    logging.getLogger("a").info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert len(root_logger.handlers) == 1


def test_a_stream_that_is_gone_does_not_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    log.setup()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr("tqdm.tqdm.write", broken)
    logging.getLogger("a").info("unheard")


def test_times_are_utc_wherever_the_machine_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    log.setup()
    root = logging.getLogger()
    record = logging.LogRecord("a", logging.INFO, "", 0, "then", (), None)
    record.created = 1767225599.9996
    root.handle(record)
    monkeypatch.undo()
    time.tzset()
    assert capsys.readouterr().err == "2025-12-31T23:59:59.999Z I a: then\n"


def test_values_of_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    values = log.fields(caller='a "b"', method="Score", positions=3, times=[1, 2], empty="")
    log.setup()
    logging.getLogger("a").info("request", extra=values)
    assert capsys.readouterr().err.endswith(
        ' I a: request caller="a \\"b\\"" method=Score positions=3 times="[1, 2]" empty=""\n'
    )
    log.setup(format="json")
    logging.getLogger("a").info("request", extra=values)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "a", "message": "request",
        "caller": 'a "b"', "method": "Score", "positions": 3, "times": [1, 2], "empty": "",
    }  # fmt: skip


def test_a_traceback_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(format="json")
    log.as_rank(2)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("a").exception("failed\nbadly")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["rank"], found["level"], found["message"]) == (2, "error", "failed\nbadly")
    assert found["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"


WRITES_EVERYWHERE = """
import logging, os, sys, threading, warnings
from shared import log

os.environ["GRPC_VERBOSITY"] = sys.argv[2]
log.setup("warning", sys.argv[1])
with log.captured():
    os.write(2, b"E0000 00:00:1700000000.123456   12345 ssl_transport_security.cc:1884] Handshake failed\\n")
    os.write(2, b"a library of C\\n\\xff\\n")
    print("for people", file=sys.stderr)
    warnings.warn("careful", stacklevel=1)
    logging.getLogger("own").warning("ours")
    os.system('printf "a child\\n" >&2')
    os.write(2, b'{"time": "then", "message": "a worker that does the same"}\\n')
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
os.write(2, b"after\\n")
"""


def written(format: str, grpc_verbosity: str = "NONE") -> list[str]:
    command = [sys.executable, "-c", WRITES_EVERYWHERE, format, grpc_verbosity]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=True)
    assert done.stdout == b""
    return done.stderr.decode(errors="backslashreplace").splitlines()


def test_all_that_is_written_on_stderr_becomes_json() -> None:
    *lines, last = written("json")
    assert last == "after"  # as before
    found = [json.loads(line) for line in lines]
    by_logger: dict[str, list[str]] = {}
    for line in found:
        by_logger.setdefault(line.get("logger", "child"), []).append(line["message"])
    assert by_logger["grpc.core"] == ["ssl_transport_security.cc:1884: Handshake failed"]
    assert by_logger["own"] == ["ours"]
    assert by_logger["child"] == ["a worker that does the same"]
    assert {"a library of C", "\\xff", "for people", "a child"} <= set(by_logger["stderr"])
    assert any("UserWarning: careful" in message for message in by_logger["stderr"])
    (failed,) = [line for line in found if line["message"] == "the thread worker failed"]
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_text_is_left_alone_unless_grpc_is_to_speak() -> None:
    raw = "E0000 00:00:1700000000.123456   12345 ssl_transport_security.cc:1884] Handshake failed"
    assert written("text")[0] == raw
    lines = written("text", "INFO")
    assert raw not in lines
    assert any(re.fullmatch(r"\S+Z E grpc.core: ssl_transport_security.cc:1884: Handshake failed", x) for x in lines)
    assert "a library of C" in lines and lines[-1] == "after"


def test_a_library_that_writes_more_than_fits_never_waits() -> None:
    """Nor does the job, which holds the interpreter while it writes."""
    code = (
        "import os\nfrom shared import log\nlog.setup(format='json')\n"
        "with log.captured():\n"
        "    for _ in range(64):\n"
        "        try:\n            os.write(2, b'x' * 2**16)\n"
        "        except BlockingIOError:\n            pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, check=True)
    assert set(json.loads(done.stderr)["message"]) == {"x"}


def shown_on(stderr: int, format: log.Format, shown: bool = True) -> None:
    code = (
        "import sys\nfrom shared import log, progress\nlog.setup(format=sys.argv[1])\n"
        "with log.captured():\n    list(progress.bar(range(3), shown=sys.argv[2] == 'True', ncols=60, nrows=20))\n"
    )
    command = [sys.executable, "-c", code, format, str(shown)]
    subprocess.run(command, stderr=stderr, cwd=REPOSITORY, check=True)


CASES: tuple[tuple[log.Format, bool, bool], ...] = (("text", True, True), ("text", False, False), ("json", True, False))
"""Format, whether a bar is wanted, and whether there is one on a terminal."""


def everything_on(terminal: int) -> bytes:
    seen = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            seen += os.read(terminal, 2**16)
    return seen


def test_progress_bars_are_for_terminals(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as stream:
        shown_on(stream.fileno(), "text")
    assert (tmp_path / "log").read_bytes() == b""
    for format, shown, is_expected in CASES:
        ours, theirs = pty.openpty()
        try:
            shown_on(theirs, format, shown)
            os.set_blocking(ours, False)
            assert (b"3/3" in everything_on(ours)) == is_expected
        finally:
            os.close(ours)
            os.close(theirs)
