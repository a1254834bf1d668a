"""A part's process: ended at its limit with all that it has started, its memory sampled meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import meters
from benchmarks.common import REPOSITORY

POLL_SECONDS = 2.0
GRACE_SECONDS = 4.0
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        code: exit code; None if it was ended at its limit.
        seconds: that it ran.
        resident_mib: most resident memory, with all that it had started.
        device_mib: most memory in use on the device, by whomever; None where nobody says.
    """

    code: int | None
    seconds: float
    resident_mib: float
    device_mib: float | None


def run(command: Sequence[str], log: Path, seconds: float, watch_device: bool) -> Ended:
    """Runs a command for at most so long; its output goes to a file."""
    began = time.monotonic()
    resident, on_device = 0.0, []
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while (left := seconds - (time.monotonic() - began)) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(POLL_SECONDS, left))
                    break
                with contextlib.suppress(psutil.Error):
                    resident = max(resident, meters.tree_rss(psutil.Process(process.pid)) / MIB)
                if watch_device and (used := _device_mib()) is not None:
                    on_device.append(used)
            code = process.poll()
        finally:
            _end_group(process)
    return Ended(code, time.monotonic() - began, resident, max(on_device, default=None))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and whatever it has started and left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and (process.poll() is None or _group_lives(process.pid)):
            time.sleep(0.05)
    process.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _device_mib() -> float | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    with contextlib.suppress(subprocess.SubprocessError, ValueError):
        return float(subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout)
    return None
