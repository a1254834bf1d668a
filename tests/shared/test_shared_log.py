"""Logs go to stderr, results to stdout."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

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
