"""Locks between processes that the system takes back when their process ends, however it ends.

A lock is a small file that its holder has locked with `flock` and that says who the holder is. The kernel's lock alone
decides; the text is for people. Why `flock` and not `lockf` (POSIX locks):

- A POSIX lock is lost as soon as its process closes *any* descriptor of the file, as copying or hashing the directory
  does, and it does not keep apart two jobs of one process.
- `flock` belongs to the open file, so a forked child would keep it alive. Python's descriptors are closed when another
  program is started, and a child that is forked closes its copies at once (`_forget`).
- On NFS Linux turns `flock` into a lock of the whole file on the server, which other hosts see (NFSv4, or NFSv3 with
  lockd, without the mount options `local_lock` and `nolock`). It must be open for writing for that, and it is.

The holder removes the file before it lets go, so that finished results do not keep it. A file that its holder could not
remove (SIGKILL, power) is locked by nobody, and the next one takes it over. Who has locked a file therefore looks
whether it is still the one under that name, and begins again if not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: there are no such locks
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NAME = ".lock"
"""Of the file in a directory that is locked."""
ATTEMPTS, PAUSE_SECONDS = 5, 0.1
"""How often a lock that is held is tried, for its holder may be letting go, or may not have said yet who it is."""
COMMAND_LENGTH = 400
"""Characters of a command line that are kept."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How file systems say that they have no locks."""

_held: set[Lock] = set()


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a lock, as far as it has said so.

    Attributes:
        since: UTC, as text.
        command: its command line, without passwords.
    """

    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


class Held(Exception):
    """Another job has the lock: callers say what to do about it.

    Attributes:
        holder: None if it has not said who it is.
    """

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(f"held by {holder or 'another process'}")
        self.holder = holder


class Lock:
    """A lock that this process holds, until it is released or the process ends.

    Attributes:
        path: its file.
        is_certain: whether the file system has locks; otherwise another process may have it, too.
    """

    def __init__(self, path: Path, handle: int, is_certain: bool) -> None:
        self.path, self.is_certain = path, is_certain
        self._handle: int | None = handle
        _held.add(self)

    def release(self) -> None:
        """Removes the file, unless it has gone with its directory, and lets go; idempotent."""
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            with contextlib.suppress(OSError):  # a disk that has become read-only: the next one takes the file over
                if _is_file_of(handle, self.path):
                    self.path.unlink()
            os.close(handle)

    def forget(self) -> None:
        """In a forked child: the lock is the parent's."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)  # the parent's descriptor keeps it locked


def acquire(path: Path, attempts: int = ATTEMPTS) -> Lock:
    """Takes a lock. On a file system without locks there is a warning, and every call succeeds.

    Args:
        path: its file; the directory must be there.
        attempts: how often a lock is tried that another process holds.

    Raises:
        Held: another job has it, of another process or of this one.
        OSError: the file cannot be written.
    """
    for _ in range(attempts - 1):
        try:
            return _try(path)
        except Held as held:
            if held.holder is not None and _is_this_process(held.holder):
                raise
        time.sleep(PAUSE_SECONDS)
    return _try(path)


def find_holder(path: Path) -> Held | None:
    """Who has a lock; None if nobody has, or there is no such file."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(handle)
    except Held:
        return Held(_read(path))
    finally:
        os.close(handle)
    return None


def _try(path: Path) -> Lock:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        is_ours = False
        try:
            is_certain = _lock(handle)
            is_ours = _is_file_of(handle, path)
            if is_ours:  # else its holder has removed it meanwhile: there is another file, or none
                _sign(handle)
                return Lock(path, handle, is_certain)
        except Held:
            found = _read(path)
            os.close(handle)
            raise Held(found) from None
        except BaseException:  # a full disk
            if is_ours:
                path.unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)


def _sign(handle: int) -> None:
    """Writes who this process is."""
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps(dataclasses.asdict(Holder(socket.gethostname(), os.getpid(), since, _command())))
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{text}\n".encode(), 0)


def _lock(handle: int) -> bool:
    """Locks an open file; False if there are no locks here. Raises `Held`."""
    if fcntl is None:
        _tell_once("this system has no file locks")
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise Held(None) from None
        if error.errno in NO_LOCKS:
            _tell_once(f"this file system has no locks ({error.strerror})")
        elif error.errno != errno.ESTALE:  # removed by another host: the caller sees that
            raise
        return False
    return True


@functools.cache
def _tell_once(why: str) -> None:
    log.warning("%s: nothing keeps a second job out of the same place", why)


def _is_file_of(handle: int, path: Path) -> bool:
    """Whether an open file is the one under a name."""
    try:
        opened, named = os.fstat(handle), path.stat()
    except OSError:  # gone; a stale handle on NFS
        return False
    return opened.st_nlink > 0 and os.path.samestat(opened, named)


def _command() -> str:
    """How this process was started, in a line of bounded length, without passwords in URLs."""
    text = " ".join(re.sub(r"(://[^:@/\s]*):[^@/\s]*@", r"\1:***@", shlex.join(sys.orig_argv)).split())
    return text if len(text) <= COMMAND_LENGTH else f"{text[:COMMAND_LENGTH]}..."


def _read(path: Path) -> Holder | None:
    """What a lock's file says; None if it says nothing yet."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Holder(str(document["host"]), int(document["pid"]), str(document["since"]), str(document["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_this_process(found: Holder) -> bool:
    return (found.host, found.pid) == (socket.gethostname(), os.getpid())


def _forget() -> None:
    """After a fork, in the child."""
    for lock in _held:
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
