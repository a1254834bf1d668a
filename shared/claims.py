"""Claiming what a job writes: one job at a time, and never in place of something else.

A job claims its OUT before it looks at it, and keeps it until it ends; then it may trust what it has seen. The claim is
a lock (`shared.lock`) in a hidden file, OUT/.lock, or .NAME.lock beside an OUT that is a file. It is gone when the job
has ended; a job that was killed leaves the file, which nobody has locked: the next job takes it over, and a directory
that holds nothing else counts as empty.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from shared import files, lock
from shared.errors import ConfigError
from shared.lock import Held, Lock

CHOOSE = "choose another --out"
"""How to mend it that a place is taken."""
MOST_ATTEMPTS = 1000
"""At making a folder that others remove as soon as it is there; some file systems refuse as if that were so."""


@contextlib.contextmanager
def directory(out: Path) -> Iterator[None]:
    """Claims a directory while the block runs. It is made if it is not there, and removed again if it stays empty.

    Raises:
        ConfigError: another job has it, or it is not a directory.
        ReportableError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a directory; {CHOOSE}")
    with files.reporting(out):
        real = files.destination(out)
        if real.parent.is_dir():
            files.clear_abandoned(real)
        held, made = _take(out, real, real / lock.NAME)
        if real in made and files.is_being_replaced(real):
            _let_go(held, made)
            raise _in_use(out, None)
    try:
        yield
    finally:
        _let_go(held, made)


@contextlib.contextmanager
def file(out: Path) -> Iterator[None]:
    """Claims a file, which is or is not there, while the block runs.

    Raises:
        ConfigError: another job has it, or it is a directory.
        ReportableError: it cannot be written.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a directory; choose another --out")
    with files.reporting(out):
        real = files.destination(out)
        held, made = _take(out, real.parent, real.parent / f".{real.name}{lock.NAME}")
    try:
        yield
    finally:
        _let_go(held, made)


def check(out: Path, what: str, is_ours: Callable[[Path], bool], mend: str = CHOOSE) -> None:
    """Refuses to write to a directory that holds something else than what a job writes there.

    Args:
        out: claimed.
        what: that, for people.
        is_ours: told the directory, whether it holds that.
        mend: what to do otherwise.

    Raises:
        ConfigError: it is neither empty nor what it should be.
    """
    if not files.is_empty(out) and not is_ours(out):
        raise ConfigError(f"{out} exists and is not {what}, so it is left alone; {mend}")


def written_by(out: Path) -> str:
    """The job whose settings a directory holds, in its config.yaml; empty if it holds none's."""
    try:
        text = (out / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r"^([a-z][a-z-]*):", text, re.MULTILINE)
    return found[1] if found else ""


def of(job: str, *before: str) -> Callable[[Path], bool]:
    """For `check`: whether a job wrote what a directory holds, or was killed before it had written its settings.

    Args:
        before: names of what the job writes before its settings.
    """

    def is_ours(out: Path) -> bool:
        return written_by(out) == job or all(path.name.startswith(".") or path.name in before for path in out.iterdir())

    return is_ours


def check_file(out: Path, may_replace: bool, mend: str) -> None:
    """Refuses to replace a file unless that is wanted.

    Raises:
        ConfigError: it is there.
    """
    if out.exists() and not may_replace:
        raise ConfigError(f"{out} exists; choose another --out or {mend}")


def holder(out: Path) -> Held | None:
    """The job that has claimed a directory, if there is one."""
    return lock.find_holder(out / lock.NAME)


def _take(out: Path, folder: Path, path: Path) -> tuple[Lock, list[Path]]:
    """The lock in a folder, and what had to be made for it, the folder first."""
    for attempt in range(MOST_ATTEMPTS + 1):
        made = [folder for folder in (folder, *folder.parents) if not folder.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return lock.acquire(path), made
        except Held as held:
            raise _in_use(out, held) from None
        except FileNotFoundError:  # a job that has ended has just removed the folder
            if attempt == MOST_ATTEMPTS:
                raise
        except FileExistsError:  # so it was there, and may have been removed before `mkdir` could look what it is
            if attempt == MOST_ATTEMPTS or (folder.exists() and not folder.is_dir()):
                raise
    raise AssertionError("the last attempt raises or returns")


def _let_go(held: Lock, made: list[Path]) -> None:
    held.release()
    with contextlib.suppress(OSError):  # not empty, or claimed by the next one
        for folder in made:
            folder.rmdir()


def _in_use(out: Path, held: Held | None) -> ConfigError:
    who = (held and held.holder) or "another process"
    return ConfigError(f"{out} is in use by {who}; wait until that ends, stop it, or choose another --out")
