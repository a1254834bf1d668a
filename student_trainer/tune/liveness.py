"""Who is alive: a worker's heartbeat, and whether the process behind a name has gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

log = logging.getLogger(__name__)


@contextlib.contextmanager
def heartbeat(storage: BaseStorage, trial_id: int, seconds: float, parent: int) -> Iterator[None]:
    """Counts up `alive` while the block runs; tells this process to stop if its parent has gone."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(seconds):
            count += 1
            try:
                storage.set_trial_user_attr(trial_id, "alive", count)
            except UpdateFinishedTrialError:  # declared lost: `tell` will say so
                return
            except Exception as error:  # a storage that is away for a while; others decide whether we are lost
                log.warning("no sign of life could be given: %s", str(error).splitlines()[0])
            stop_if_orphaned(parent)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def stop_if_orphaned(parent: int) -> None:
    """Sends this process SIGTERM if the one that started it has gone."""
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def worker_name() -> str:
    """This process, so that others on the same machine can see whether it lives."""
    return f"{_machine()}/{os.getpid()}/{psutil.Process().create_time():.2f}"


def is_dead(name: str | None) -> bool:
    """Whether it is certain that a process has gone: one of this machine that is not there."""
    if name is None:
        return False
    machine, pid, created = name.rsplit("/", 2)
    if machine != _machine():
        return False
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(created)) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Name of the host, its boot and its process namespace, as far as the system tells."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "|".join(parts)
