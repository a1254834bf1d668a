"""Section `hidden`: `student-trainer train` with a real daemon on a core of its own, against training without one.

Every distilled run has a daemon that remembers nothing yet, so its first epoch is cold and its second warm. The time
of an epoch is that of its steps, from the run's own log; validation is left out, though it asks the teacher, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cities, daemon, meters
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.weights import write_teacher
from shared.store import Store
from shared.training import logbook
from student_trainer.prepare.config import GridConfig

CITY, GRID = "sf_taxi_core", GridConfig()
EPOCHS = 2
POLL_SECONDS = 0.2

Record = dict[str, float]
"""A line of a run's metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        n_layer, n_embd: of the teacher.
        trips: of an epoch.
        rounds: how often both have their turn.
        every: steps between two records of the log.
    """

    n_layer: int = 4
    n_embd: int = 256
    trips: int = 4_800
    rounds: int = 1
    every: int = 5


QUICK = Size(n_layer=2, n_embd=32, trips=128, rounds=1, every=1)


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Of one run: seconds of its steps, seconds of these that waited for the teacher, and the server's hit rate."""

    seconds: float
    waited: float
    hit_rate: float | None = None


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if a run failed."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    teacher = write_teacher(options.work / "core-teacher.safetensors", store, size.n_layer, size.n_embd)
    theirs, ours = daemon.two_cores()
    rounds = []
    for number in range(size.rounds):
        turns = {}
        for kind in rotated(["vanilla", "distilled"], number):
            if kind == "vanilla":
                turns[kind] = _train(store, None, ours, size)
                continue
            with daemon.serve(teacher, "engine.threads=1", cores=theirs) as server:
                turns[kind] = _train(store, server, ours, size)
        rounds.append(turns)
    figures = {f"epoch {epoch + 1}": _figures(epoch, rounds) for epoch in range(EPOCHS)}
    settings = {
        **cities.facts(store),
        "cores": {"server": theirs, "trainer": ours},
        **dataclasses.asdict(size),
    }
    title = "The time of an epoch with a teacher"
    return Result("hidden", title, settings, figures, [_table(figures)], _notes(settings))


def _train(store: Store, server: daemon.Daemon | None, cores: Sequence[int], size: Size) -> list[Epoch]:
    """A run of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "student_trainer",
            "train",
            "--log-level",
            "warning",
            "--data",
            str(store.path),
        ]
        command += ["--teacher", server.address if server else "none", "--out", str(out), f"optim.epochs={EPOCHS}"]
        command += [f"batch.train_trips={size.trips}", f"log.every={size.every}", "log.tensorboard=false"]
        command += ["log.progress=false", "log.checkpoint_every=0", "runtime.device=cpu", "runtime.threads=1"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with meters.pinned(cores):
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
        with process:
            try:
                scrapes = _watch(process, out / "metrics.jsonl", server)
            finally:
                process.terminate()
        if process.returncode:
            raise BenchmarkError("a training run failed; its log is above")
        found = epochs(read(out / "metrics.jsonl"))
    if server is None:
        return found
    rates = [meters.hit_rate(before, after) for before, after in itertools.pairwise(scrapes)]
    return [dataclasses.replace(epoch, hit_rate=rate) for epoch, rate in zip(found, rates, strict=True)]


def _watch(process: subprocess.Popen[bytes], log: Path, server: daemon.Daemon | None) -> list[meters.Samples]:
    """What the daemon has counted at the start and after every epoch's validation; returns when the run has ended."""
    scrapes = [meters.scrape(server.metrics)] if server else []
    running = True
    while running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            running = False
        if server and len(scrapes) <= sum(_ends_epoch(record) for record in read(log)):
            scrapes.append(meters.scrape(server.metrics))
    return scrapes


def read(log: Path) -> list[Record]:
    """The whole lines of a run's metrics so far."""
    return logbook.read(log) if log.exists() else []


def _ends_epoch(record: Record) -> bool:
    return any(name.startswith("val/") for name in record)


def epochs(records: Sequence[Record]) -> list[Epoch]:
    """Time of each epoch's steps: a record holds means over the steps since the one before."""
    found: list[Epoch] = []
    seconds = waited = 0.0
    last = 0.0
    for record in records:
        if _ends_epoch(record):
            found.append(Epoch(seconds, waited))
            seconds = waited = 0.0
        else:
            steps, last = record["step"] - last, record["step"]
            seconds += steps * record["perf/step_ms"] / 1000
            waited += steps * record.get("perf/teacher_wait_ms", 0.0) / 1000
    return found


def _figures(epoch: int, rounds: Sequence[dict[str, list[Epoch]]]) -> dict[str, Any]:
    pairs = [(turns["vanilla"][epoch], turns["distilled"][epoch]) for turns in rounds]
    rates = [distilled.hit_rate for _, distilled in pairs if distilled.hit_rate is not None]
    return {
        "vanilla_seconds": spread([vanilla.seconds for vanilla, _ in pairs]),
        "distilled_seconds": spread([distilled.seconds for _, distilled in pairs]),
        "ratio": spread([distilled.seconds / vanilla.seconds for vanilla, distilled in pairs]),
        "teacher_wait_share": spread([distilled.waited / distilled.seconds for _, distilled in pairs]),
        "hit_rate": spread(rates) if rates else None,
    }


def _table(figures: dict[str, Any]) -> Table:
    rows = []
    for name, found in figures.items():
        ratio, rate = found["ratio"], found["hit_rate"]
        rows.append(
            [
                name,
                f"{found['vanilla_seconds']['median']:.1f}",
                f"{found['distilled_seconds']['median']:.1f}",
                f"{ratio['median']:.3f}",
                f"{ratio['min']:.3f} to {ratio['max']:.3f}",
                f"{found['teacher_wait_share']['median']:.2%}",
                f"{rate['median']:.1%}" if rate else "",
            ]
        )
    header = [
        "epoch",
        "vanilla s",
        "distilled s",
        "ratio",
        "least to most",
        "waits for the teacher",
        "rows not computed",
    ]
    return Table("steps of an epoch", header, rows)


def _notes(settings: dict[str, Any]) -> list[str]:
    cores = settings["cores"]
    apart = (
        f"Trainer on core {cores['trainer'][0]}, server on core {cores['server'][0]}"
        if cores["server"]
        else ("Trainer and server on the same core")
    )
    return [
        f"{settings['city']}, {settings['trips']:,} trips an epoch; teacher of {settings['n_layer']} layers of "
        f"{settings['n_embd']}, window 4. {apart}, one thread each. {settings['rounds']} rounds by turns, medians; "
        "ratios are taken within a round, same seed.",
        "Every distilled run begins with a server that remembers nothing. Rows not computed: of an epoch with its "
        "validation.",
    ]
