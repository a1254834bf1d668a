"""Command lines without their jobs: what a program would be asked to do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest

from shared import cli
from shared.config import Section

PACKAGES = {"teacher-server": "teacher_server", "student-trainer": "student_trainer"}


def parsed_settings(program: str, argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Section:
    """The settings that a command line makes, with the real job table, schema and files; the job is not run."""
    seen: list[Section] = []
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_import", _schema_or(seen.append))
        jobs = importlib.import_module(f"{PACKAGES[program]}.__main__").JOBS
        assert cli.main(program, "", jobs, argv) == 0, " ".join(argv)
    return seen[-1]  # the check of what is on this machine has seen them, too


def _schema_or(recorder: Any) -> Any:
    real = cli._import

    def imported(path: str) -> Any:
        value = real(path)
        return value if isinstance(value, type) and issubclass(value, Section) else recorder

    return imported
