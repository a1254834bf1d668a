"""A limit of memory that the system itself keeps to: a control group, where this user may make one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

VERSION_1 = Path("/sys/fs/cgroup/memory")
VERSION_2 = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group of memory; a process that exceeds its limit is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        is_old = (folder / "memory.limit_in_bytes").exists()
        self._limit = folder / ("memory.limit_in_bytes" if is_old else "memory.max")
        self._used = folder / ("memory.usage_in_bytes" if is_old else "memory.current")

    @property
    def used(self) -> int:
        """Bytes that its processes hold, files that they have read included."""
        return int(self._used.read_text())

    def limit(self, size: int) -> None:
        """Bytes that its processes may hold from now on."""
        self._limit.write_text(str(size))

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes that are started in the block are in the group; this one is when they are."""
        here = _own_group(self._folder)
        _move(self._folder)
        try:
            yield
        finally:
            _move(here)


@contextlib.contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup | None]:
    """A group for a test; None where there are no groups, or this user may not make one."""
    root = VERSION_1 if (VERSION_1 / "cgroup.procs").exists() else VERSION_2
    folder = root / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        group = MemoryGroup(folder)
        yield group if _works(group) else None
    finally:
        _remove(folder)


def _works(group: MemoryGroup) -> bool:
    """False for version 2 without the memory controller, and where processes may not be moved."""
    try:
        with group.inherited():
            return group.used >= 0
    except OSError:
        return False


def _own_group(folder: Path) -> Path:
    """The group of this process in the hierarchy of a folder."""
    kind = ":memory:" if folder.is_relative_to(VERSION_1) else "::"
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if kind in line)
    return folder.parent / line.split(":", 2)[2].lstrip("/")


def _move(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def _remove(folder: Path) -> None:
    for _ in range(100):  # a group can be removed once its last process has been reaped
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return
