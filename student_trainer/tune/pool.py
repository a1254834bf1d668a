"""The worker processes of this machine: started, watched, replaced, stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from shared import processes, provenance
from shared.errors import TrainingError
from student_trainer.tune import plan
from student_trainer.tune.config import TuneConfig

log = logging.getLogger(__name__)

END_SECONDS = 60.0
"""How long workers may take to stop between two steps and write their checkpoints."""
MAX_DEATHS = 5
"""Workers that may be killed in a row, without a trial ended in between, before `tune` gives up."""


@dataclasses.dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    log: Path


class WorkerPool:
    """The worker processes of this machine: started, watched, replaced, stopped."""

    def __init__(self, settings: TuneConfig, revision: str) -> None:
        self._settings, self._revision = settings, revision
        self._running: list[_Worker] = []
        self._deaths = 0

    def __enter__(self) -> WorkerPool:
        self._running = [self._start(number) for number in range(self._settings.workers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # all slots are filled: they end by themselves
            self._wait(END_SECONDS)
        self._stop()

    def _start(self, number: int) -> _Worker:
        settings = self._settings
        path = settings.out / "logs" / f"worker-{number}.log"
        threads = plan.threads(settings, provenance.cores())
        command = processes.command("student_trainer.tune.worker", str(settings.out / "config.yaml"),
                                    str(number), str(os.getpid()), self._revision)  # fmt: skip
        with path.open("ab") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                env=processes.environment(OMP_NUM_THREADS=str(threads)),
            )  # fmt: skip
        return _Worker(number, process, path)

    def check(self, refill: Callable[[], None]) -> None:
        """Replaces workers that were killed; `refill` makes the slots free that they held.

        Raises:
            TrainingError: one ended by an error, or they are killed again and again.
        """
        for worker in list(self._running):
            code = worker.process.poll()
            if code is None or code == 0:
                continue
            if code > 0:
                raise TrainingError(f"{_last_line(worker.log)} (worker {worker.number}; its log is {worker.log})")
            self._deaths += 1
            if self._deaths > MAX_DEATHS:
                raise TrainingError(
                    f"{self._deaths} workers were killed without a trial ended in between, the last by signal {-code}; "
                    f"is there memory for {self._settings.workers} of them? Logs are in {worker.log.parent}"
                )
            log.warning("worker %d was killed (signal %d); another one takes its place", worker.number, -code)
            refill()
            self._running.remove(worker)
            self._running.append(self._start(worker.number))

    def forgive(self) -> None:
        """A trial has ended: deaths before it do not count any more."""
        self._deaths = 0

    def _wait(self, seconds: float) -> None:
        """Until all have ended, at most so long."""
        deadline = time.monotonic() + seconds
        for worker in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def _stop(self) -> None:
        for worker in self._running:
            if worker.process.poll() is None:
                worker.process.terminate()
        self._wait(END_SECONDS)
        for worker in self._running:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    with contextlib.suppress(ValueError, TypeError, KeyError):  # of text
        return str(json.loads(lines[-1])["message"]).removeprefix("tune: ")
    return lines[-1].removeprefix("tune: ")
