"""gpu-check runs whole on a CPU at toy size, keeps what it knows when a part fails, and packs what must travel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.random_city import write_random_store

from benchmarks.common import BenchmarkError
from benchmarks.gpu import pack, page, record, tests, watch
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.predictions import PREDICTIONS
from benchmarks.gpu.record import Record

BLOCKER = """
import sys
MISSING = {"polars", "kahip", "optuna", "wandb", "plotly", "sqlalchemy", "cmaes", "playwright", "matplotlib"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""
"""Packages that a machine with an accelerator lacks, and that do not travel."""


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_all_parts_run_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out, blocker = write_random_store(tmp_path / "store"), tmp_path / "out", tmp_path / "site"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    monkeypatch.setenv("PYTHONPATH", str(blocker))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("TEST_ACCELERATOR", raising=False)
    command = [sys.executable, "-m", "benchmarks.gpu", "--store", store.path, "--out", out, "--seconds", 800]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "gpu.json").read_text())
    assert list(found["parts"]) == list(PARTS)
    figures = {
        f"{name}/{figure['name']}": figure for name, part in found["parts"].items() for figure in part["figures"]
    }
    needs_cuda = {"kernels of", "syncs of", "float16", "memory of the engine", "eight clients"}
    missing = {name for name in PREDICTIONS if name not in figures and not any(word in name for word in needs_cuda)}
    assert not missing, "predictions of what nothing measures"
    for name in (
        "teacher/second pass has the bits of the first",
        "daemon/one client: daemon and engine give the same bits",
    ):
        assert figures[name]["value"] is True
    assert figures["tests/skipped"]["value"] > 0 and figures["tests/failed"]["value"] == 0
    assert figures["train/cold ÷ vanilla, time of a step"]["value"] > 0
    assert figures["generate/trips of the same roads"]["value"] == 1
    assert (out / "gpu.md").read_text() in done.stdout


def test_what_fails_ends_nothing_else(tmp_path: Path) -> None:
    kept = Record(tmp_path / "part.json", 100.0)
    with kept.attempt("a division"):
        kept.add("before", 1.0, "s")
        kept.add("never", 1 / 0)
    with kept.attempt("something long"):
        kept.need(1000.0)
        kept.add("too late", 1.0)
    kept.add("after", 3.0, "s", baseline=("before", 2.0))
    found = record.read(tmp_path / "part.json")
    assert [(figure["name"], figure["ratio"]) for figure in found["figures"]] == [("before", None), ("after", 1.5)]
    division, long = found["failures"]
    assert division["what"] == "a division" and "ZeroDivisionError" in division["error"]
    assert "1000 s are needed" in long["error"]
    part = found | {"seconds": 1.0, "limit": 2.0, "code": 1, "resident_mib": 1.0, "device_mib": None}
    text = page.markdown({"date": "today", "device": "cpu", "parts": {"teacher": part}})
    assert "| after | 3 | s |" in text and "ZeroDivisionError" in text and "0 of 1 parts" in text


def test_a_part_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {'import time; time.sleep(600)'!r}])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    ended = watch.run([sys.executable, "-c", code], tmp_path / "log", 3.0, watch_device=False)
    assert ended.code is None and ended.seconds < 60
    child = int((tmp_path / "log").read_text())
    give_up = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_outcomes_of_tests_are_counted_once(tmp_path: Path) -> None:
    log = tmp_path / "outcomes.jsonl"
    lines = [("a", "passed"), ("a", "failed"), ("b", "skipped"), ("c", "failed"), ("c", "passed")]
    log.write_text("".join(json.dumps({"test": test, "outcome": outcome}) + "\n" for test, outcome in lines))
    assert {line["test"]: line["outcome"] for line in tests.read(log)} == {"a": "failed", "b": "skipped", "c": "failed"}
    assert tests.read(tmp_path / "none") == []


def test_wheels_are_those_of_the_lock() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    for name in pack.WHEELS:
        assert pack.locked(lock, name).startswith(f"{name}==")
    assert pack.locked("grpcio-tools==9\ngrpcio==1.2 ; sys_platform\n", "grpcio") == "grpcio==1.2"
    with pytest.raises(BenchmarkError, match="does not name abacus"):
        pack.locked(lock, "abacus")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "teacher,abacus"], "no part abacus; parts are machine, tests"),
        (["--device", "cpu"], "is not a store"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--store", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
