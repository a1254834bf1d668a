"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from pathlib import Path

from shared import teacher_file
from shared.errors import ReportableError
from shared.store import Store
from teacher_server.config import ExportConfig, PretrainConfig, ServeConfig


def check_export(settings: ExportConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already."""
    refuse_existing(settings.out, settings.overwrite)


def check_pretrain(settings: PretrainConfig) -> None:
    """Raises `ReportableError` if the teacher file is there already, or the store is not."""
    refuse_existing(settings.out, settings.overwrite)
    Store(settings.data)


def check_serve(settings: ServeConfig) -> None:
    """Raises `FileFormatError` if there is no teacher file."""
    teacher_file.read_header(settings.teacher)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises `ReportableError` if `out` exists and may not be replaced."""
    if out.exists() and not overwrite:
        raise ReportableError(f"{out} exists; choose another --out or add overwrite=true")
