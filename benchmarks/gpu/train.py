"""Part `train`: `student-trainer train` on the device, without a teacher and distilled against a daemon on it.

The first distilled run finds a daemon that remembers nothing (cold), the second repeats it (warm). Trainer and daemon
share the device. A run's own log says what its steps took; its first lines, in which shapes are met for the first
time, are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import daemon, hidden, meters
from benchmarks.common import REPOSITORY, BenchmarkError
from benchmarks.gpu import clock, teachers
from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from shared.store import Store

LOG_CHARACTERS = 3000
SKIPPED_RECORDS = 1
"""Of a run: its first lines."""


def run(task: Task, record: Record) -> None:
    """Measures each run on its own."""
    store, size = Store(task.store), task.size
    path = teachers.write_for(task.work, store, size)
    vanilla: float | None = None
    with record.attempt("vanilla"):
        record.need(10)
        vanilla = _train("vanilla", task, None, record)
    with (task.work / "train-daemon.log").open("wb") as stream:
        settings = [*teachers.overrides(task.device, size), daemon.remembering(teachers.CACHE_MIB)]
        with record.attempt("distilled"), daemon.serve(path, *settings, log=stream) as served:
            record.need(15)
            for name in ("cold", "warm"):
                with record.attempt(name):
                    record.need(10)
                    before = meters.scrape(served.metrics)
                    step = _train(name, task, served, record)
                    known = meters.hit_rate(before, meters.scrape(served.metrics))
                    if known is not None:
                        record.add(f"{name}, share of positions not computed", known)
                    if vanilla:
                        record.add(f"{name} ÷ vanilla, time of a step", step / vanilla)
            record.add("memory of the daemon's process", meters.tree_rss(served.process) / clock.MIB, "MiB")
    log = (task.work / "train-daemon.log").read_text(encoding="utf-8", errors="replace")
    record.detail("daemon's log", log[-LOG_CHARACTERS:])


def _train(name: str, task: Task, served: daemon.Daemon | None, record: Record) -> float:
    """Milliseconds of a step."""
    size, out = task.size, task.work / f"run-{name}"
    shutil.rmtree(out, ignore_errors=True)
    trips = min(size.batch_size * size.train_steps, len(Store(task.store).trips("train")))
    command = [sys.executable, "-m", "student_trainer", "train", "--log-level", "warning", "--data", str(task.store)]
    command += ["--teacher", served.address if served else "none", "--out", str(out), "optim.epochs=1"]
    command += [
        f"optim.batch_size={size.batch_size}",
        f"batch.train_trips={trips}",
        f"batch.val_trips={size.val_trips}",
    ]
    command += [f"log.every={size.log_every}", "log.tensorboard=false", "log.progress=false", "log.checkpoint_every=0"]
    command += [f"model.road_id_dim={size.road_id_dim}", f"model.road_attr_dim={size.road_attr_dim}"]
    command += [f"runtime.device={task.device}"]
    began = time.perf_counter()
    with (task.work / f"{name}.log").open("w") as log:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=os.environ, stdout=log, stderr=log, timeout=max(5.0, record.left), check=False
        )
    if done.returncode:
        raise BenchmarkError(
            (task.work / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
        )
    records = hidden.read(out / "metrics.jsonl")
    steps = [line for line in records if "perf/step_ms" in line]
    record.add(f"{name}, whole run", time.perf_counter() - began, "s", note="from nothing, with validation")
    kept = steps[SKIPPED_RECORDS:] or steps
    step = _mean(steps, kept, "perf/step_ms")
    record.add(name, 1000 / step, "steps/s")
    for part in ("data_wait", "teacher_wait", "record"):
        if any(f"perf/{part}_ms" in line for line in kept):
            spent = _mean(steps, kept, f"perf/{part}_ms")
            record.add(f"{name}, {part.replace('_', ' ')}", spent, "ms", baseline=("its step", step))
    record.detail(f"{name}, lines", [json.loads(json.dumps(line)) for line in records])
    return step


def _mean(steps: Sequence[hidden.Record], kept: Sequence[hidden.Record], name: str) -> float:
    """Mean over the steps of the kept lines; a line holds means over the steps since the one before."""
    first = len(steps) - len(kept)
    starts = [0.0, *(line["step"] for line in steps)][first:]
    weights = [line["step"] - start for line, start in zip(kept, starts, strict=False)]
    return sum(w * line.get(name, 0.0) for w, line in zip(weights, kept, strict=True)) / sum(weights)
