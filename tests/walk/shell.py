"""Runs the commands as a shell would, and makes what they print the same on every run."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from walk.steps import DEMO, OWN_CITY, REPORT, Step, write_own_city

STEP_SECONDS = 250
"""Far more than any takes; what waits longer hangs."""
READY = "listening on "
"""What the daemon's log says when it can answer."""
AS_ON_A_TERMINAL = {"PYTHONUNBUFFERED": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
"""Both streams in the order in which they are written; one thread, as the demo has."""
LISTEN = "127.0.0.1:50051"
"""Where the documents' daemon listens; the walk's takes a free port."""
UNSTEADY: tuple[tuple[str, str], ...] = (
    (r"(?m)^ +\d+ s: .*\n", ""),  # the demo's news from a stage, after each 10 s of it
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"(?m)^TIME I (?:shared\.progress: |teacher_server\.pretrain\.session: \d+ tokens/s: ).*\n", ""),  # of slow ones
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"(?<![\d.])[12]\d{9}\b", "SECONDS"),  # since 1970
    (r"(?<![\w.])[0-9a-f]{16,64}\b", "HASH"),
    (r"\b\d[\d.]* (s|ms|min|(?:tokens|trips|positions)/s)(?![\w/])", r"# \1"),
    (r"version \d.*?(?=, one thread)", "VERSIONS AND PROCESSOR"),
)
"""What differs from run to run, or from machine to machine, and what is put in its place."""
NUMBER = r"[+\u2212-]?(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*[\w/])"
MEASURED: tuple[tuple[str, str], ...] = (
    (r"[+\u2212-]?(?<![\w.])\d[\d,]*\.\d+(?:e[+-]?\d+)?(?!\w)", "#"),
    (rf"{NUMBER}(?= arrived| dead end| step limit| to #| times as)|(?<= to ){NUMBER}", "#"),
    (r"p [=<] [\d.#]*[\d#]", "p #"),
    (rf"(  [a-z_]+) {NUMBER}", r"\1 #"),  # an epoch's
    (r" {3,}#", "  #"),  # a column
)
"""The same of what a model has learned: other processors round other sums."""


def run_walk(folder: Path) -> str:
    """Types all commands in an empty directory; returns what a golden file holds.

    The demo and the own city know nothing of each other, so they take a core each, as in two terminals.
    """
    write_own_city(folder)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        demo = pool.submit(_typed, DEMO, folder, {})
        own = pool.submit(_own_city, folder)
        texts = [demo.result(), own.result()]
    return "\n".join([*texts, _typed(REPORT, folder, {})])


def _own_city(folder: Path) -> str:
    """The commands in their order; the daemon's output comes where it was started, with all it says until the end."""
    texts: list[str | Callable[[], str]] = []
    ports: dict[str, str] = {}
    daemons: list[_Daemon] = []
    try:
        for step in OWN_CITY:
            if step.lasts:
                daemons.append(daemon := _Daemon(step, folder))
                ports[LISTEN] = daemon.ready()
                texts.append(daemon.stopped)
            else:
                texts.append(_typed(step, folder, ports))
        return "\n".join(text if isinstance(text, str) else text() for text in texts)
    finally:
        for daemon in daemons:
            daemon.killed()


def _typed(step: Step, folder: Path, ports: dict[str, str]) -> str:
    """Runs one command to its end; both streams as they come."""
    process = _start(step, folder, ports)
    try:
        printed = process.communicate(timeout=STEP_SECONDS)[0]
    finally:
        process.kill()
    return _shown(step, printed, process.returncode, folder)


class _Daemon:
    """A command that lasts."""

    def __init__(self, step: Step, folder: Path) -> None:
        self.step, self.folder, self.process, self.lines = step, folder, _start(step, folder, {}), list[str]()
        self.address = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def ready(self) -> str:
        """The address where it answers, once it does."""
        assert self._ready.wait(STEP_SECONDS) and self.address, "".join(self.lines)
        return self.address

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)
                if found := re.search(rf"{READY}(\S+:\d+)$", line.rstrip()):
                    self.address = found[1]
                    self._ready.set()
        self._ready.set()

    def killed(self) -> None:
        """Ends it, however far it is."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stopped(self) -> str:
        """Ends it as a supervisor does, so that it drains; returns all that it printed."""
        self.process.terminate()
        code = self.process.wait(STEP_SECONDS)
        self._reader.join()
        return _shown(self.step, "".join(self.lines), code, self.folder)


def _start(step: Step, folder: Path, ports: dict[str, str]) -> subprocess.Popen[str]:
    line = step.typed
    for documented, free in ports.items():
        line = line.replace(documented, free)
    program, *arguments = shlex.split(line)
    beside = Path(sys.executable).parent
    return subprocess.Popen(
        [str(beside / program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", **AS_ON_A_TERMINAL},
    )  # fmt: skip


def _shown(step: Step, printed: str, code: int, folder: Path) -> str:
    ending = f"[exit code {code}]\n" if code else ""
    return f"$ {step.typed}\n{steady(printed, step.measured, folder)}{ending}"


def steady(printed: str, measured: bool, folder: Path) -> str:
    """What is printed, without what differs between two runs or machines."""
    text = printed.replace(str(folder), "HERE")
    for pattern, shown in (*UNSTEADY, *(MEASURED if measured else ())):
        text = re.sub(pattern, shown, text)
    if not measured:
        return text
    return "".join(_result(line) if line.startswith("{") else line for line in text.splitlines(keepends=True))


def _result(line: str) -> str:
    """A result, which is JSON for programs, with all its numbers masked."""
    return re.sub(r"(?<=[\[ ])-?[\d.#]+(?:e-?\d+)?(?=[,\]}])", "#", line)
