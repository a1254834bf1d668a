"""The teachers that the daemon can be, by the name that a teacher file's header has: the only place that lists them.

Each is loaded by a function that gives a `Scorer`; its imports, and torch with them, come when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import teacher_file
from shared.errors import FileFormatError
from shared.teacher_file import TeacherHeader
from teacher_server.scorer import Scorer

if TYPE_CHECKING:
    from teacher_server.engine.config import EngineConfig


def _lmtad(path: Path, settings: EngineConfig) -> Scorer[Any]:
    from teacher_server.engine import engine

    return engine.load(path, settings)


TEACHERS: dict[str, Callable[[Path, EngineConfig], Scorer[Any]]] = {teacher_file.LMTAD: _lmtad}


def read_header(path: Path) -> TeacherHeader:
    """The header of a teacher file that can be served.

    Raises:
        FileFormatError: the file is none, or of a model that is not known here.
    """
    header = teacher_file.read_header(path)
    if header.model not in TEACHERS:
        known = ", ".join(sorted(TEACHERS))
        raise FileFormatError(f"{path} holds a teacher of the model {header.model!r}, which is not known here: {known}")
    try:
        _ = header.block_size
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    return header


def load(path: Path, settings: EngineConfig) -> Scorer[Any]:
    """What scores with a teacher file; raises as `read_header`, and what its model's loader raises."""
    return TEACHERS[read_header(path).model](path, settings)
