"""Writing files so that nobody ever sees half of one, and naming their content.

Every writer follows links: it is what a link leads to that is written, and the link stays (see `destination`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import lock
from shared.errors import ReportableError
from shared.lock import Held, Lock

PARTIAL, REPLACED = "partial", "replaced"
"""Kinds of temporary directories beside a target: its next content, and its last."""

PROBE, PROBE_BYTES = ".probe", 65536
"""Where and how much is written to learn whether anything can be."""

REPLACE_ATTEMPTS, REPLACE_PAUSE_SECONDS = 20, 0.1
"""How often a directory is moved to where another process has just made one, which it removes again."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def destination(path: Path) -> Path:
    """Where a path leads, whether there is something or not: absolute, without links.

    Raises:
        ReportableError: a link in it leads in a circle, or to a place in a directory that does not exist: something
            that is not mounted, perhaps.
    """
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            leads = Path(os.path.realpath(part))
            if leads.is_symlink():
                raise ReportableError(f"cannot write {path}: the link {part} leads in a circle; choose another place")
            if not leads.parent.is_dir():
                raise ReportableError(
                    f"cannot write {path}: the link {part} leads to {leads}, and there is no directory {leads.parent}; "
                    "make it, or choose another place"
                )
    return Path(os.path.realpath(path))


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, where they lead, if they are not there."""
    destination(path).mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Removes a file, if it is there; a link to it stays, so that what is written next goes where it leads."""
    destination(path).unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a directory holds nothing but the lock of a job."""
    return all(path.name == lock.NAME for path in folder.iterdir())


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that becomes `target` if the block succeeds; if `target` is a link, what it
    leads to.

    The bytes are on disk before the name changes, so a crash leaves the old file
    or the new one. If the block raises, the temporary file is removed.

    Raises:
        ReportableError: there can be no such file, or the file system takes no more.
    """
    with reporting(target):
        real = destination(target)
        real.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with reporting(target, temporary):
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, or beside what it leads to, that takes its place if the block succeeds.

    The bytes are on disk before the names change. Where the system can exchange two names (Linux), a process that is
    killed at any time leaves the old directory or the new one; elsewhere there is a moment without either, and the
    next call for the same target puts the old one back. What killed processes have left beside the target is removed
    by the next call, once it is certain that nobody is writing there any more.

    Raises:
        ReportableError: there can be no such directory, or the file system takes no more.
    """
    with reporting(target):
        real = destination(target)
        real.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(real)
        temporary, held = _locked_directory(real, PARTIAL)
    try:
        with reporting(target, temporary):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _sync_tree(temporary)
            _replace_directory(temporary, real)
            held.path = real / lock.NAME  # it has moved with its directory
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        held.release()


def _replace_directory(temporary: Path, target: Path) -> None:
    """Afterwards `temporary` is gone, or is what `target` was."""
    if not target.exists():
        _move(temporary, target)
    elif not target.is_dir() or not _exchange(temporary, target):
        _put_aside_and_replace(temporary, target)
    _sync(target.parent)


def _put_aside_and_replace(temporary: Path, target: Path) -> None:
    old, held = _locked_directory(target, REPLACED)
    aside, is_needed = old / target.name, False
    try:
        os.replace(target, aside)
        is_needed = True
        try:
            _move(temporary, target)
        except BaseException:
            _move(aside, target)
            is_needed = False
            raise
        is_needed = False
    finally:
        if not is_needed:
            shutil.rmtree(old, ignore_errors=True)
        held.release()


def _move(source: Path, target: Path) -> None:
    """Renames; where another process has made a directory to claim it, waits until it has removed that again.

    It does as soon as it sees that there is a `REPLACED` directory, see `is_being_replaced`.
    """
    for _ in range(REPLACE_ATTEMPTS - 1):
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        time.sleep(REPLACE_PAUSE_SECONDS)
    os.replace(source, target)


def _exchange(a: Path, b: Path) -> bool:
    """Gives two directories each other's name in one step; False where the system or its file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _locked_directory(target: Path, kind: str) -> tuple[Path, Lock]:
    """A new directory beside `target`, and the lock that shows for as long as this process lives that it is in use."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.{kind}-", dir=target.parent))
        try:
            return path, lock.acquire(path / lock.NAME)
        except (Held, FileNotFoundError):  # somebody took it for abandoned before it was locked
            continue
        except BaseException:  # a full disk
            shutil.rmtree(path, ignore_errors=True)
            raise


def _beside(target: Path, kinds: str) -> list[Path]:
    """Temporary directories of these kinds, a regular expression, beside `target`."""
    pattern = re.compile(re.escape(f".{target.name}.") + rf"({kinds})-\w{{8}}")
    found = [path for path in sorted(target.parent.iterdir()) if pattern.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def is_being_replaced(target: Path) -> bool:
    """Whether a process has put `target`, a path without links, aside and is about to put another in its place."""
    return bool(_beside(target, REPLACED))


def clear_abandoned(target: Path) -> None:
    """Removes what killed processes left beside `target`, and puts back what they had put aside.

    Args:
        target: a path without links.
    """
    for path in _beside(target, f"{PARTIAL}|{REPLACED}"):
        try:
            held = lock.acquire(path / lock.NAME, attempts=1)
        except (Held, OSError):
            continue
        if not held.is_certain:  # somebody may be writing there
            held.release()
            continue
        aside = path / target.name
        if not target.exists() and aside.exists() and path.name.startswith(f".{target.name}.{REPLACED}-"):
            os.replace(aside, target)
        shutil.rmtree(path, ignore_errors=True)
        held.release()


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Waits until a file or a directory is on disk; of a directory where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a directory, on systems that do not open them
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def reporting(target: Path, written: Path | None = None) -> Iterator[None]:
    """Around what writes `target`: a failure of the file system is reported, whichever library has met it.

    Args:
        target: the file or directory, for people.
        written: what the block itself writes; its trouble with anything else is not touched.
    """
    try:
        yield
    except ReportableError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        if written is not None and not _is_of(error, written):
            reason = refusal(written)  # some libraries do not say why they could not write
        if not reason:
            raise
        raise ReportableError(f"cannot write {target}: {reason}; choose another place") from None


def _is_of(error: Exception, written: Path) -> bool:
    """Whether an error says why, and that it was about this file, or of a write, which names none."""
    if not isinstance(error, OSError) or not error.strerror:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(written)


def refusal(path: Path) -> str | None:
    """Why nothing more can be written to a file or into a directory, in the system's words; None if it can."""
    probe = path / PROBE if path.is_dir() else path
    try:
        with open(probe, "ab", buffering=0) as stream:
            if stream.write(bytes(PROBE_BYTES)) < PROBE_BYTES:
                return os.strerror(errno.ENOSPC)
            os.fsync(stream.fileno())
    except OSError as error:
        return error.strerror
    return None


def write_text(target: Path, text: str) -> None:
    """Writes a whole text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Writes JSON atomically, indented for people."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A value for JSON, with the numbers that JSON lacks as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(*parts: bytes | str) -> str:
    """Hexadecimal SHA-256 of the parts, each preceded by its length."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
