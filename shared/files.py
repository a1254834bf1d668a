"""Writing files so that nobody ever sees half of one, and naming their content."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import ReportableError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is known to be abandoned
    fcntl = None  # type: ignore[assignment]

PARTIAL, REPLACED = "partial", "replaced"
"""Kinds of temporary directories beside a target: its next content, and its last."""

PROBE, PROBE_BYTES = ".probe", 65536
"""Where and how much is written to learn whether anything can be."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that becomes `target` if the block succeeds.

    The bytes are on disk before the name changes, so a crash leaves the old file
    or the new one. If the block raises, the temporary file is removed.

    Raises:
        ReportableError: there can be no such file, or the file system takes no more.
    """
    with _reporting(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _reporting(target, temporary):
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its place if the block succeeds.

    The bytes are on disk before the names change. Where the system can exchange two names (Linux), a process that is
    killed at any time leaves the old directory or the new one; elsewhere there is a moment without either, and the
    next call for the same target puts the old one back. What killed processes have left beside the target is removed
    by the next call, once it is certain that nobody is writing there any more.

    Raises:
        ReportableError: there can be no such directory, or the file system takes no more.
    """
    with _reporting(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(target)
        temporary, lock = _locked_directory(target, PARTIAL)
    try:
        with _reporting(target, temporary):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _sync_tree(temporary)
            _replace_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def _replace_directory(temporary: Path, target: Path) -> None:
    """Afterwards `temporary` is gone, or is what `target` was."""
    if not target.exists():
        os.replace(temporary, target)
    elif target.is_symlink() or not target.is_dir() or not _exchange(temporary, target):
        _put_aside_and_replace(temporary, target)
    _sync(target.parent)


def _put_aside_and_replace(temporary: Path, target: Path) -> None:
    old, lock = _locked_directory(target, REPLACED)
    try:
        aside = old / target.name
        os.replace(target, aside)
        try:
            os.replace(temporary, target)
        except BaseException:
            os.replace(aside, target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        _unlock(lock)


def _exchange(a: Path, b: Path) -> bool:
    """Gives two directories each other's name in one step; False where the system or its file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _locked_directory(target: Path, kind: str) -> tuple[Path, int | None]:
    """A new directory beside `target`, and the handle that keeps it locked for as long as this process lives."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.{kind}-", dir=target.parent))
        lock = _lock(path)
        if path.exists():  # else somebody took it for abandoned before it was locked
            return path, lock
        _unlock(lock)


def _lock(directory: Path) -> int | None:
    """Locks a directory; None if another process holds it, or if there are no locks here."""
    if fcntl is None:
        return None
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear_abandoned(target: Path) -> None:
    """Removes what killed processes left beside `target`, and puts back what they had put aside."""
    pattern = re.compile(re.escape(f".{target.name}.") + rf"({PARTIAL}|{REPLACED})-\w{{8}}")
    for path in sorted(target.parent.iterdir()):
        if not pattern.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        lock = _lock(path)
        if lock is None:
            continue
        aside = path / target.name
        if not target.exists() and aside.exists() and path.name.startswith(f".{target.name}.{REPLACED}-"):
            os.replace(aside, target)
        shutil.rmtree(path, ignore_errors=True)
        _unlock(lock)


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
def _reporting(target: Path, written: Path | None = None) -> Iterator[None]:
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
