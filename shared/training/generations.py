"""The newest files of a name and those before them: NAME.pt, NAME.1.pt, NAME.2.pt, ...

A crash leaves a whole NAME.pt at any moment, old or new.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shared import files
from shared.errors import FileFormatError

log = logging.getLogger(__name__)

T = TypeVar("T")


def generation(path: Path, age: int) -> Path:
    """Where the checkpoint is kept that was `path` so many checkpoints ago."""
    return path.with_suffix(f".{age}{path.suffix}") if age else path


def rotate(path: Path, keep: int) -> None:
    """Gives each generation the next one's name, `path` a second one, and removes those that are too many."""
    before = generation(path, 1)
    if keep > 1 and path.exists() and not (before.exists() and before.samefile(path)):  # a crash may have come between
        for age in reversed(range(1, keep - 1)):
            if generation(path, age).exists():
                os.replace(generation(path, age), generation(path, age + 1))
        before.unlink(missing_ok=True)
        try:
            os.link(files.destination(path), before)  # of a link itself, a later one would be the same file
        except OSError:  # a file system without links
            shutil.copyfile(path, before)
    for surplus in of(path):
        if surplus != path and surplus not in [generation(path, age) for age in range(1, keep)]:
            surplus.unlink()


def of(path: Path) -> list[Path]:
    """The checkpoints that are there, newest first."""
    older = [found for found in path.parent.glob(f"{path.stem}.*{path.suffix}") if found.suffixes[-2][1:].isdigit()]
    return [path] * path.exists() + sorted(older, key=lambda found: int(found.suffixes[-2][1:]))


def remove_halves(path: Path) -> None:
    """Removes what a process that was killed while it wrote `path` has left beside it; for who has claimed the run."""
    path = files.destination(path)
    for half in path.parent.glob(f".{path.name}.*"):
        half.unlink()


def newest(path: Path, load: Callable[[Path], T], steps: Callable[[T], int]) -> T | None:
    """The newest checkpoint that can be read, of `path` and those before it; None if there is none.

    Args:
        path: the newest one's.
        load: reads one; raises `FileFormatError` if it cannot.
        steps: how many are done in one, for people.

    Raises:
        FileFormatError: there are some, and none can be read.
    """
    failures = []
    for candidate in of(path):
        try:
            checkpoint = load(candidate)
        except FileFormatError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            log.warning("%s; going on from %s, %d steps done", failure, candidate, steps(checkpoint))
        return checkpoint
    if failures:
        raise FileFormatError(f"no checkpoint can be read: {'; '.join(failures)}; start anew in another directory")
    return None
