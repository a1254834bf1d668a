"""A fuzz target, and the verdict on one input."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shared.errors import ReportableError


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: on the command line.
        read: takes the bytes; returns or raises.
        seeds: makes inputs that are good, or nearly; called once.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]


def attempt(target: Target, data: bytes) -> bool:
    """Whether the reader took the bytes; raises whatever it should not have raised."""
    try:
        target.read(data)
    except ReportableError as error:
        assert str(error), "an error without a word"
        return False
    return True


@contextlib.contextmanager
def as_file(data: bytes, name: str = "input") -> Iterator[Path]:
    """The bytes as a file."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def _memory() -> str | None:
    """A directory that is no disk, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private directory is made in it
