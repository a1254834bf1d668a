"""Part `tests`: the tests that are marked `cuda`, cheapest first; the words of those that fail are kept."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY
from benchmarks.gpu import outcomes
from benchmarks.gpu.record import Failure, Record
from benchmarks.gpu.task import Task

TEST_SECONDS = 60
"""Limit of one test."""
PROCESSES = 6
"""Run tests at once where pytest-xdist is installed: most of their time is the host's, starting and compiling."""
STOP_SECONDS = 6
"""How long pytest may take to stop."""


def run(task: Task, record: Record) -> None:
    """Runs them."""
    log = task.work / "outcomes.jsonl"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-m", "cuda", "-q", "-p", "benchmarks.gpu.outcomes"]
    command += ["-p", "no:cacheprovider", "-o", "filterwarnings=default", f"--timeout={TEST_SECONDS}"]
    if task.device.type == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(PROCESSES)]
    outer = {name for name in os.environ if name.startswith("PYTEST_XDIST_")}  # of tests of this part itself
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment[outcomes.VARIABLE] = str(log)
    with (task.work / "pytest.log").open("w") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(max(1.0, record.left - 2 * STOP_SECONDS))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            record.failures.append(Failure("all tests", "the part's time was over before the last test had ended"))
        finally:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    found = read(log)
    counts = Counter(line["outcome"] for line in found)
    for outcome in ("passed", "failed", "skipped"):
        record.add(outcome, counts[outcome], "tests")
    record.failures += [Failure(line["test"], line["text"]) for line in found if line["outcome"] == "failed"]
    record.detail("tests", [{k: v for k, v in line.items() if k != "text" or v} for line in found])
    if not found or process.returncode not in (0, 1, -signal.SIGINT, 2):
        text = (task.work / "pytest.log").read_text(encoding="utf-8", errors="replace")
        record.failures.append(Failure(f"pytest ended with {process.returncode}", text[-3000:]))
    record.save()


def read(log: Path) -> list[dict[str, Any]]:
    """The outcomes so far, one a test; a test that fails after it has passed has failed."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, lines):
        if found.get(line["test"], {}).get("outcome") != "failed":
            found[line["test"]] = line
    return list(found.values())
