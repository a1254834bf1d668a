"""A pytest plugin that writes each test's outcome to the file GPU_OUTCOMES at once, so that a run that is stopped
halfway has told what it knew: `pytest -p benchmarks.gpu.outcomes`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "GPU_OUTCOMES"
TEXT_CHARACTERS = 4000


def pytest_runtest_logreport(report: Any) -> None:
    """Called by pytest for each phase of a test; the test itself counts, and what fails or skips before or after.

    Of several processes (pytest-xdist) the one that leads them hears of all tests.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ and (report.when == "call" or report.outcome != "passed"):
        _write(report)


def pytest_collectreport(report: Any) -> None:
    """Called by pytest for each file that it reads."""
    if report.failed:
        _write(report)


def _write(report: Any) -> None:
    text = "" if report.outcome == "passed" else str(report.longrepr)[-TEXT_CHARACTERS:]
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(getattr(report, "duration", 0.0), 2),
        "text": text,
        "properties": dict(getattr(report, "user_properties", [])),
    }
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
