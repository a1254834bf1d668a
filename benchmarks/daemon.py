"""A teacher daemon of its own for a section: started, found, pinned, ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

from benchmarks import meters
from benchmarks.common import REPOSITORY, BenchmarkError

END_SECONDS = 20
"""How long a daemon may drain before it is killed."""


@dataclasses.dataclass(frozen=True)
class Daemon:
    """A serving daemon.

    Attributes:
        address: HOST:PORT of its calls.
        metrics: HOST:PORT of its metrics.
        process: its process.
    """

    address: str
    metrics: str
    process: psutil.Process


def remembering(mib: int) -> str:
    """The override that bounds what the teacher remembers; 0: nothing."""
    return f"cache.mib={mib}"


@contextlib.contextmanager
def serve(teacher: Path, *overrides: str, cores: Sequence[int] = (), log: IO[bytes] | None = None) -> Iterator[Daemon]:
    """A daemon on free ports of 127.0.0.1, until the block ends.

    Args:
        teacher: the teacher file.
        overrides: of its settings, `name=value`.
        cores: that it may run on; empty: all.
        log: where its log goes; None: to this process's stderr.

    Raises:
        BenchmarkError: it did not start.
    """
    command = [sys.executable, "-m", "teacher_server", "serve", "--log-level", "warning", "--teacher", str(teacher)]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with meters.pinned(cores):  # inherited, so that the daemon's threads are there from the first
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY, env=environment
        )
    with process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()  # printed once it serves; empty if it ended instead
            if not ready:
                raise BenchmarkError("the teacher daemon did not start; its log is above")
            found = json.loads(ready)
            yield Daemon(found["listening"], found["metrics"], psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def two_cores() -> tuple[list[int], list[int]]:
    """A core for the daemon and one for who asks it; two empty lists, for no choice, where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[:1], cores[1:2]) if len(cores) > 1 else ([], [])
