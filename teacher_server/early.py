"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from shared import claims, teacher_file
from shared.store import Store
from teacher_server.lmtad.config import OVERWRITE, ExportConfig, PretrainConfig
from teacher_server.offline import config as offline
from teacher_server.offline.config import AnswerConfig
from teacher_server.serve.config import ServeConfig


def check_export(settings: ExportConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already."""
    claims.check_file(settings.out, settings.overwrite, OVERWRITE)


def check_pretrain(settings: PretrainConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already, or the store is not."""
    claims.check_file(settings.out, settings.overwrite, OVERWRITE)
    Store(settings.data)


def check_answer(settings: AnswerConfig) -> None:
    """Raises `ReportableError` if the answers file is there already, or the store or the teacher file is not."""
    claims.check_file(settings.out, settings.overwrite, offline.OVERWRITE)
    Store(settings.data)
    if settings.teacher is not None:
        teacher_file.read_header(settings.teacher)


def check_serve(settings: ServeConfig) -> None:
    """Raises `FileFormatError` if there is no teacher file."""
    teacher_file.read_header(settings.teacher)
