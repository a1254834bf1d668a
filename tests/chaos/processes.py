"""Teachers and trainers as processes: started from a process that has imported everything, watched, ended."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tqdm

PATIENCE_SECONDS = 240.0
"""After which a cell has failed: whatever is waited for comes sooner, also on a busy machine."""
PRELOADED = (
    "tests.chaos.processes",
    "student_trainer.train.run",
    "teacher_server.engine.engine",
    "teacher_server.serve.run",
)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


class CellFailed(Exception):
    """What should have happened has not."""


def wait_for(condition: Any, what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value of a condition, asked again and again."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise CellFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)
    return value


def _run(program: str, argv: list[str], out: str, environment: dict[str, str]) -> None:
    """In the child: a command of the project, its streams in files."""
    os.environ.update(environment)
    for number, suffix in ((1, "out"), (2, "err")):
        handle = os.open(f"{out}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    tqdm.tqdm.set_lock(threading.RLock())  # its own is of all processes, and complains when one is killed
    sys.argv = [program, *argv]
    code = importlib.import_module(f"{program}.__main__").main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


class Program:
    """A running command, with what it writes."""

    def __init__(self, program: str, argv: Sequence[object], log: Path, **environment: str) -> None:
        self.log = log
        self._process = _context.Process(
            target=_run, args=(program, [str(part) for part in argv], str(log), environment), daemon=True
        )
        self._process.start()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise CellFailed(f"{self.log.name} did not end within {seconds:.0f} s")
        return self._process.exitcode

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self._process.exitcode is not None

    def kill(self) -> None:
        """Ends it, whatever it does."""
        if not self.has_ended:
            self._process.kill()
        self._process.join()

    @property
    def stderr(self) -> str:
        """What it has written to its log."""
        path = Path(f"{self.log}.err")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def stdout(self) -> str:
        """Its results."""
        path = Path(f"{self.log}.out")
        return path.read_text() if path.exists() else ""


class Teacher(Program):
    """`teacher-server serve` on a free port."""

    def __init__(self, file: Path, log: Path, *overrides: str) -> None:
        argv = ["serve", "--teacher", file, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        argv += ["engine.device=cpu", *overrides]
        super().__init__("teacher_server", argv, log)
        self._ready: dict[str, Any] = {}

    def address(self) -> str:
        """Where it listens; waits until it does."""
        return str(self._announced()["listening"])

    def metrics(self) -> str:
        """HOST:PORT of its metrics."""
        return str(self._announced()["metrics"])

    def _announced(self) -> dict[str, Any]:
        if not self._ready:
            wait_for(lambda: self.stdout.endswith("\n") or self.has_ended, f"{self.log.name} ready")
            if self.has_ended:
                raise CellFailed(f"the teacher ended: {self.stderr[-500:]}")
            self._ready = json.loads(self.stdout.splitlines()[-1])
        return self._ready


class Trainer(Program):
    """`student-trainer train`, alone or as one rank of several."""

    def __init__(self, argv: Sequence[object], out: Path, rank: int = 0, world: int = 1, port: int = 0) -> None:
        self.out, self.rank = out, rank
        environment = {}
        if world > 1:
            environment = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        log = out.with_name(f"{out.name}.rank{rank}")
        super().__init__("student_trainer", argv, log, **environment)

    def step(self) -> int:
        """Optimizer steps done, as its metrics say."""
        with contextlib.suppress(OSError):
            with open(self.out / "metrics.jsonl", "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 4096))
                found = re.findall(rb'^\{"step": (\d+).*\}$', file.read(), re.MULTILINE)
            return int(found[-1]) if found else 0
        return 0

    def retries(self) -> int:
        """Attempts that the teacher's failures have cost."""
        text = (self.out / "metrics.jsonl").read_text()
        return int(sum(json.loads(line).get("perf/teacher_retries", 0) for line in text.splitlines()))

    def weights(self) -> str:
        """SHA-256 of the weights at the end: the student's, the head's, and the fitted target's."""
        content = torch.load(self.out / "checkpoints" / "last.pt", weights_only=True)
        digest = hashlib.sha256()
        for name, tensor in [*content["model"].items(), *content["distillation"].items()]:
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])
