"""The matrix: cells, how one is run, what is found, the table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from conftest import write_tiny_teacher

from shared import files
from shared.store import Store
from tests.chaos.faults import FAULTS, Scene
from tests.chaos.processes import CellFailed, Program, Teacher, Trainer, free_port, wait_for
from tests.chaos.proxy import Proxy

TRANSPORTS = {
    f"{transport}/{history}": (f"client.transport={transport}", f"distill.history={history}")
    for transport, history in itertools.product(("unary", "stream"), ("window", "sequence"))
}
TRAINERS = {"1": (1, 1), "4": (4, 1), "2 ranks": (1, 2)}
"""Runs, and ranks of each."""
SETTINGS = (
    *("model.road_id_dim=8", "model.road_attr_dim=2", "optim.batch_size=16", "optim.epochs=8", "runtime.threads=1"),
    *("log.every=1", "log.tensorboard=false", "log.checkpoint_every=0"),
    *("client.deadline_seconds=5", "client.keepalive_seconds=6", "client.retry_seconds=200"),
)
FIRST_STEPS, LAST_STEPS = 12, 40
"""Optimizer steps before the fault, of 80: all runs have made the first, or one of them the last."""
SIGNS = re.compile(r"teacher at \S+ is out|\(attempt \d+\); trying again|aiting for the teacher|changed its weights")
"""What a trainer's log says when it has noticed."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A place in the matrix; names of `FAULTS`, `TRANSPORTS`, `TRAINERS`."""

    fault: str
    transport: str
    trainers: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What happened in a cell.

    Attributes:
        cell: which.
        injected_at: optimizer step of the first run.
        detected_after: seconds until the last run's log showed it; None: it never did, nothing failed.
        stood_still: longest time without a step of any run, seconds.
        recovered_after: seconds from the fault's end until the step that ended that time; 0 if it came before.
        refused_after: seconds until the last run had ended, where it must.
        retries: attempts repeated by all runs.
        is_equal: whether all weights at the end are those of the undisturbed run.
        trouble: why the cell failed; empty: it has not.
    """

    cell: Cell
    injected_at: int = 0
    detected_after: float | None = None
    stood_still: float | None = None
    recovered_after: float | None = None
    refused_after: float | None = None
    retries: int = 0
    is_equal: bool = False
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the cell ended as it should."""
        return self.is_equal and not self.trouble

    def row(self) -> list[str]:
        """Its row of the table."""

        def seconds(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f} s"

        bits = "equal" if self.is_equal else self.trouble or "DIFFERENT"
        after = (
            f"refused {seconds(self.refused_after)}"
            if self.refused_after is not None
            else seconds(self.recovered_after)
        )
        cell = dataclasses.astuple(self.cell)
        times = [seconds(self.detected_after), seconds(self.stood_still), after]
        return [*cell, str(self.injected_at), *times, str(self.retries), bits]


HEADER = (
    "fault",
    "asked by",
    "trainers",
    "at step",
    "detected after",
    "stood still",
    "recovered after",
    "retries",
    "bits",
)


def cells(only: dict[str, Sequence[str]]) -> Iterator[Cell]:
    """The cells whose names are among those wanted, by `fault`, `transport` and `trainers`; a missing one takes all."""
    for names in itertools.product(FAULTS, TRANSPORTS, TRAINERS):
        cell = Cell(*names)
        if all(getattr(cell, part) in wanted for part, wanted in only.items()):
            yield cell


class Lab:
    """A tiny city, its teachers, and the weights of runs that nobody disturbs."""

    def __init__(self, work: Path) -> None:
        """Makes what is not there yet in `work`."""
        self.work = work
        raw, store = work / "raw", work / "store"
        if not store.exists():
            small = ("columns=9", "rows=9", "trips={train: 160, val: 32, test: 1}", "drivers=20", "weeks=1")
            for argv in (["demo-city", "--out", raw, *small], ["prepare", "--raw", raw, "--out", store]):
                job = Program("student_trainer", argv, work / argv[0])
                if job.wait():
                    raise CellFailed(f"no city: {job.stderr[-500:]}")
        self.store = Store(store)
        self.right, self.other = work / "right.safetensors", work / "other.safetensors"
        for seed, path in enumerate((self.right, self.other)):
            if not path.exists():
                write_tiny_teacher(path, seed, self.store.tokeniser)
        self._references: dict[int, str] = {}
        self._count = itertools.count()

    def reference(self, world: int) -> str:
        """Weights of an undisturbed run of so many ranks."""
        if world not in self._references:
            teacher = Teacher(self.right, self.log("teacher"))
            try:
                run = self.start_run("reference", teacher.address(), world, ())
                for rank in run:
                    if rank.wait():
                        raise CellFailed(f"the undisturbed run failed: {rank.stderr[-500:]}")
                self._references[world] = run[0].weights()
            finally:
                teacher.kill()
        return self._references[world]

    def start_run(self, name: str, address: str, world: int, settings: Sequence[str]) -> list[Trainer]:
        """The ranks of a run; `--resume` among the settings goes on with the run of that name."""
        out = self.work / "runs" / name
        if "--resume" not in settings:
            shutil.rmtree(out, ignore_errors=True)
            for log in out.parent.glob(f"{name}.rank*"):
                log.unlink()
            out.parent.mkdir(exist_ok=True)
        argv = ["train", "--log-level", "debug", "--data", self.store.path, "--teacher", address, "--out", out]
        port = free_port() if world > 1 else 0
        return [Trainer([*argv, *SETTINGS, *settings], out, rank, world, port) for rank in range(world)]

    def log(self, name: str) -> Path:
        """Where a program may write, with nothing there yet."""
        logs = self.work / "logs"
        logs.mkdir(exist_ok=True)
        path = logs / f"{name}{next(self._count)}"
        for suffix in ("out", "err"):
            Path(f"{path}.{suffix}").unlink(missing_ok=True)
        return path

    def run(self, cell: Cell, seconds_of_stop: float) -> Found:
        """A cell, whatever happens in it."""
        fault, (count, world) = FAULTS[cell.fault], TRAINERS[cell.trainers]
        started: list[Teacher] = []
        runs: list[list[Trainer]] = []

        def start(file: Path) -> Teacher:
            started.append(Teacher(file, self.log("teacher"), *fault.serve))
            return started[-1]

        found = Found(cell)
        proxy: Proxy | None = None
        try:
            reference = self.reference(world)
            teacher = start(self.right)
            proxy = Proxy(teacher.address())
            scene = Scene(proxy, teacher, start, self.right, self.other, self.store.tokeniser.vocabulary.cells)
            settings = (*TRANSPORTS[cell.transport], *fault.client)
            runs = [self.start_run(f"run{n}", proxy.address, world, settings) for n in range(count)]
            wait_for(lambda: _is_time(runs), "the steps before the fault")
            if any(rank.has_ended for run in runs for rank in run):
                raise CellFailed("a run had ended before the fault")
            seconds = seconds_of_stop if fault.seconds is None else fault.seconds
            watch = Watch(runs)
            found = dataclasses.replace(found, injected_at=runs[0][0].step())
            fault.begin(scene)
            watch.look(seconds)
            if fault.is_refused:
                codes = [rank.wait() for run in runs for rank in run]
                found = dataclasses.replace(found, refused_after=time.monotonic() - watch.began)
                watch.look(0)
                if any(code not in (1, 2) for code in codes) or any("--resume" not in run[0].stderr for run in runs):
                    raise CellFailed(f"not refused as it should be: exit codes {codes}")
                fault.end(scene)
                again = (*settings, "--resume")
                runs = [self.start_run(f"run{n}", proxy.address, world, again) for n in range(count)]
            else:
                fault.end(scene)
                watch.until_ended()
                found = dataclasses.replace(found, stood_still=watch.stood_still, recovered_after=watch.recovered_after)
            codes = [rank.wait() for run in runs for rank in run]
            if any(codes):
                raise CellFailed(f"exit codes {codes}: {_last_lines(runs)}")
            return dataclasses.replace(
                found,
                detected_after=watch.detected_after(),
                retries=sum(run[0].retries() for run in runs),
                is_equal=all(run[0].weights() == reference for run in runs),
            )
        except CellFailed as error:
            return dataclasses.replace(found, trouble=" ".join(str(error).split()))
        finally:
            for program in (*itertools.chain.from_iterable(runs), *started):
                program.kill()
            if proxy is not None:
                proxy.close()


class Watch:
    """Looks at runs from the fault on: when their logs tell of it, and when they make steps.

    Attributes:
        stood_still: longest time without a step of a run so far, seconds.
        recovered_after: seconds from the fault's end to the end of that time.
    """

    def __init__(self, runs: Sequence[Sequence[Trainer]]) -> None:
        self.began = time.monotonic()
        self.stood_still = self.recovered_after = 0.0
        self._runs = runs
        self._before = [sum(len(rank.stderr) for rank in run) for run in runs]
        self._detected: list[float | None] = [None] * len(runs)
        self._steps = [(run[0].step(), self.began) for run in runs]
        self._fault_ended = float("inf")

    def look(self, seconds: float) -> None:
        """For so long."""
        end = time.monotonic() + seconds
        while True:
            for number, run in enumerate(self._runs):
                self._look_at(number, run)
            if time.monotonic() >= end:
                return
            time.sleep(0.05)

    def until_ended(self) -> None:
        """Until every run is over; the fault ends now."""
        self._fault_ended = time.monotonic()

        def all_have_ended() -> bool:
            self.look(0)
            return all(rank.has_ended for run in self._runs for rank in run)

        wait_for(all_have_ended, "the end of the runs")

    def detected_after(self) -> float | None:
        """The latest of the runs that have noticed."""
        return max((seconds for seconds in self._detected if seconds is not None), default=None)

    def _look_at(self, number: int, run: Sequence[Trainer]) -> None:
        now, step = time.monotonic(), run[0].step()
        text = "".join(rank.stderr for rank in run)
        if self._detected[number] is None and SIGNS.search(text, self._before[number]):
            self._detected[number] = now - self.began
        before, since = self._steps[number]
        if step > before:
            self._steps[number] = step, now
            if now - since > self.stood_still:
                self.stood_still, self.recovered_after = now - since, max(0.0, now - self._fault_ended)


def run_matrix(chosen: Sequence[Cell], work: Path, out: Path, seconds_of_stop: float, echo: bool = True) -> list[Found]:
    """Runs cells one after the other; each is printed and kept when it is done, beside those of earlier calls."""
    work.mkdir(parents=True, exist_ok=True)
    lab, results = Lab(work), earlier(out)
    for cell in chosen:
        results[cell] = found = lab.run(cell, seconds_of_stop)
        if echo:
            print(" | ".join(found.row()), flush=True)
        write(out, [results[key] for key in cells({}) if key in results])
    return [results[cell] for cell in chosen]


def write(out: Path, results: Sequence[Found]) -> None:
    """OUT.md and OUT.json."""
    files.write_json(out.with_suffix(".json"), [dataclasses.asdict(found) for found in results])
    rows = [HEADER, ["---"] * len(HEADER), *(found.row() for found in results)]
    files.write_text(out.with_suffix(".md"), "".join("| " + " | ".join(row) + " |\n" for row in rows))


def earlier(out: Path) -> dict[Cell, Found]:
    """What OUT.json holds."""
    path = out.with_suffix(".json")
    records = json.loads(path.read_text()) if path.exists() else []
    return {Cell(**record["cell"]): Found(**{**record, "cell": Cell(**record["cell"])}) for record in records}


def _is_time(runs: Sequence[Sequence[Trainer]]) -> bool:
    steps = [run[0].step() for run in runs]
    return min(steps) >= FIRST_STEPS or max(steps) >= LAST_STEPS or any(run[0].has_ended for run in runs)


def _last_lines(runs: Sequence[Sequence[Trainer]]) -> str:
    return "; ".join(rank.stderr.strip().splitlines()[-1] for run in runs for rank in run if rank.stderr.strip())
