"""Where things are remembered between runs that whoever writes them could turn into code: this user's directories only.

What numba and torch keep are pickles and machine code. A directory that others can write to is therefore not used.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

NAME = "lmtad-hoser"


def user_directory() -> Path:
    """This user's directory for what can be made again: in $XDG_CACHE_HOME, or in ~/.cache; it need not exist.

    Raises:
        OSError: this user has no home.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home directory") from None
    return root / NAME


def make_private(directory: Path) -> None:
    """Makes a directory that this user alone can write to, or looks whether it is one.

    Raises:
        OSError: it cannot be made, or is another user's, or others may write to it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is a link or a file, not a directory", str(directory))
    if not is_private(status):
        raise PermissionError(errno.EPERM, f"others can write to it ({describe(status)})", str(directory))


def is_private(status: os.stat_result) -> bool:
    """Whether this user and root alone can have written to a file or directory; true where files have no owners."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def describe(status: os.stat_result) -> str:
    """Owner and mode, for people."""
    return f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
