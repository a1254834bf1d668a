"""Makes the runs, several at a time, the most wanted first; goes on where an earlier call was stopped.

    python -m benchmarks.regimes.pool OUT --data STORE --teacher ADDRESS [--own SIZE=ADDRESS] --sampled SIZE=DIR ...

OUT/TEACHER/TRIPS/ARM-SEED/   a run, its generated trips and their evaluation
OUT/results.jsonl             a line for each finished run
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.regimes import arms
from benchmarks.regimes.arms import Arm, Regime
from shared.store import Store
from student_trainer.prepare.collisions import degrees
from student_trainer.prepare.config import CELL_SIZE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one teacher's runs find what they need.

    Attributes:
        name: of the teacher: all (it has seen all trips), or own (only those that the student has labels of), and the
            size of its cells where it is not the usual one.
        teacher: its address.
        sampled: directory of directories of trips sampled from it, by policy.
    """

    name: str
    teacher: str
    sampled: Path | None


@dataclasses.dataclass(frozen=True)
class Task:
    """One run."""

    place: Place
    regime: Regime
    arm: Arm
    seed: int

    @property
    def teacher(self) -> str:
        """The name of the teacher that its result is kept under; runs without one are the same beside each."""
        return "all" if self.arm.is_free else self.place.name

    def out(self, root: Path) -> Path:
        """Its directory."""
        return root / self.teacher / str(self.regime.trips) / f"{self.arm.name}-{self.seed}"


def tasks(places: dict[tuple[str, int], Place], only: set[str], seeds: range) -> Iterator[Task]:
    """Seed by seed, and for each all regimes and arms, those that matter most first."""
    for seed in seeds:
        for arm in arms.ALL if only else arms.ARMS:
            for regime in arms.REGIMES:
                for name in ("all", "own"):
                    place = places.get((name, regime.trips))
                    is_wanted = not only or f"{arm.name}@{regime.trips}" in only or arm.name in only
                    if place is None or not is_wanted or (name == "own" and arm.is_free):
                        continue
                    yield Task(place, regime, arm, seed)


def cells_of(data: Path) -> str:
    """What the size of a store's cells adds to the name of its teachers: nothing if it is the usual one."""
    grid = Store(data).tokeniser.grid
    assert grid is not None, "`prepare` has made the store"
    return "" if grid.cell_lat == CELL_SIZE else f"-{degrees(grid.cell_lat)}"


class Pool:
    """Runs and evaluations side by side until a deadline."""

    def __init__(self, root: Path, data: Path, device: str, until: float, rate: float) -> None:
        """Of runs with a learning rate, in processes on the device, until a moment of `time.monotonic`."""
        self._root, self._data, self._device, self._until, self._rate = root, data, device, until, rate
        self._lock, self._running = threading.Lock(), set[subprocess.Popen[bytes]]()

    def make(self, task: Task) -> Task | None:
        """Trains; None if it could not be done in time."""
        out = task.out(self._root)
        if not (out / "result.json").exists():
            command = [sys.executable, "-m", "benchmarks.regimes.one", str(out), "--arm", task.arm.name]
            command += ["--trips", str(task.regime.trips), "--seed", str(task.seed), "--data", str(self._data)]
            command += ["--teacher", task.place.teacher, "--device", self._device]
            command += [f"optim.learning_rate={self._rate}"]
            if task.arm.samples:
                command += ["--sampled", f"{task.place.sampled}/{task.arm.policy}"]
            if not self._run(command, out.parent / f"{out.name}.log"):
                return None
            result: dict[str, Any] = json.loads((out / "result.json").read_text())
            self._note({"teacher": task.teacher, **result})
        return task

    def judge(self, task: Task) -> None:
        """Generates trips and evaluates them."""
        out = task.out(self._root)
        if (out / "evaluation" / "metrics.json").exists():
            return
        trainer = [sys.executable, "-m", "student_trainer"]
        where = ["--data", str(self._data)]
        weights = ["--weights", str(out / "checkpoints" / "best.pt")]
        name = f"name={task.arm.name}-{task.seed}"
        log = out.parent / f"{out.name}.log"
        generate = [*trainer, "generate", *where, *weights, "--out", str(out / "trips"), name, "threads=1"]
        evaluate = [*trainer, "evaluate", *where, "--trips", str(out / "trips"), "--out", str(out / "evaluation")]
        if self._run(generate, log):
            self._run(evaluate, log)

    def bound(self, task: Task) -> None:
        """Estimates what its teacher can still teach a finished run: out/headroom.json."""
        out = task.out(self._root)
        if (out / "headroom.json").exists():
            return
        command = [sys.executable, "-m", "student_trainer", "headroom", "--data", str(self._data)]
        command += ["--teacher", task.place.teacher, "--weights", str(out / "checkpoints" / "best.pt")]
        command += ["--split", "test", "--trips", "0", f"train_trips={task.regime.trips}", f"device={self._device}"]
        made = out / "headroom.part"
        if self._run(command, out.parent / f"{out.name}.log", made):
            made.rename(out / "headroom.json")

    def _run(self, command: list[str], log: Path, result: Path | None = None) -> bool:
        """Whether it succeeded in time; what it prints goes to the log, or its result to a file of its own."""
        if time.monotonic() >= self._until:
            return False
        log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(log.open("ab"))
            printed = stream if result is None else stack.enter_context(result.open("wb"))
            process = subprocess.Popen(command, stdout=printed, stderr=stream, env=ENVIRONMENT)
        with self._lock:
            self._running.add(process)
        try:
            return process.wait(timeout=max(self._until - time.monotonic(), 0.1)) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        finally:
            with self._lock:
                self._running.discard(process)

    def _note(self, result: dict[str, Any]) -> None:
        with self._lock, (self._root / "results.jsonl").open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        test = result["test"]
        print(
            f"{result['teacher']}/{result['trips']}/{result['arm']}-{result['seed']}: {100 * test['accuracy']:.2f} % "
            f"nll {test['nll']:.4f} ece {test['ece']:.4f} time {test['time_error']:.4f}; {result['steps']} steps in "
            f"{result['seconds']} s + {result['overhead_seconds']} s",
            flush=True,
        )


def main() -> int:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser("benchmarks.regimes.pool", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="store")
    parser.add_argument("--teacher", required=True, help="one that has seen all trips")
    parser.add_argument("--sampled", action="append", default=[], help="TRIPS=DIR: sampled with so many labelled trips")
    parser.add_argument("--own", action="append", default=[], help="TRIPS=ADDRESS=DIR: a teacher of these trips alone")
    parser.add_argument("--only", action="append", default=[], help="ARM or ARM@TRIPS")
    parser.add_argument("--seeds", type=int, default=5, help="up to this one, exclusive")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=arms.USUAL_RATE, help="learning rate; another has its own OUT")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2, help="runs at once")
    parser.add_argument("--judges", type=int, default=1, help="evaluations at once")
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    places, cells = {}, cells_of(given.data)
    for text in given.sampled:
        trips, _, folder = text.partition("=")
        places["all", int(trips)] = Place(f"all{cells}", given.teacher, Path(folder))
    for text in given.own:
        trips, address, folder = text.split("=")
        places["own", int(trips)] = Place(f"own{cells}", address, Path(folder))
    pool = Pool(given.out, given.data, given.device, time.monotonic() + given.seconds, given.rate)
    with (
        concurrent.futures.ThreadPoolExecutor(given.workers) as training,
        concurrent.futures.ThreadPoolExecutor(given.judges) as judging,
    ):
        running = [
            training.submit(pool.make, task)
            for task in tasks(places, set(given.only), range(given.first_seed, given.seeds))
        ]
        judged = []
        for done in concurrent.futures.as_completed(running):
            task = done.result()
            if task is None:
                continue
            judged.append(judging.submit(pool.judge, task))
            if task.arm.name == "vanilla" and task.teacher == task.place.name:  # not by a teacher of other cells
                judged.append(judging.submit(pool.bound, task))
    for one in judged:
        one.result()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
