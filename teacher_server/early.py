"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from shared import claims
from shared.store import Store
from shared.training.launch import is_one_of_several
from teacher_server import teachers
from teacher_server.lmtad.config import OVERWRITE, ExportConfig
from teacher_server.offline import config as offline
from teacher_server.offline import questions
from teacher_server.offline.config import AnswerConfig
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.layout import check_unused
from teacher_server.serve.config import ServeConfig


def check_export(settings: ExportConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already."""
    claims.check_file(settings.out, settings.overwrite, OVERWRITE)


def check_pretrain(settings: PretrainConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already, or the store is not.

    Several ranks would each say so: they look when they have met, and say it once.
    """
    if is_one_of_several():
        return
    check_unused(settings)
    Store(settings.data)


def check_answer(settings: AnswerConfig) -> None:
    """Raises `ReportableError` if the answers file is there already, or store or teacher file do not fit."""
    claims.check_file(settings.out, settings.overwrite, offline.OVERWRITE)
    store = Store(settings.data)
    if settings.teacher is not None:
        header = teachers.read_header(settings.teacher)
        questions.check_teacher(header.tokeniser, header.block_size - 1, str(settings.teacher), store, settings.windows)


def check_serve(settings: ServeConfig) -> None:
    """Raises `FileFormatError` if there is no teacher file, or it is of a model that is not known here."""
    teachers.read_header(settings.teacher)
