"""Progress where nobody watches: lines in a log; the items are what they were."""

from __future__ import annotations

import logging

import pytest

from shared import progress


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(0, 1000, 20))  # 20 s an item
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, progress.__name__):
        assert list(progress.track([1, 2, 3, 4, 5], "work", "piece")) == [1, 2, 3, 4, 5]
    assert caplog.messages == ["work: 2 of 5, about 60 s left", "work: 4 of 5, about 20 s left"]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track([1, 2], "work", "piece")) == [1, 2]
    shown = capsys.readouterr().err
    assert "work: 100%" in shown and "2/2" in shown
