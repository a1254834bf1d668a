"""Command lines without their jobs: what a program would be asked to do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest

from shared import cli
from shared.cli import Flag, Job
from shared.config import Section

PACKAGES = {"teacher-server": "teacher_server", "student-trainer": "student_trainer"}


PLACEHOLDERS = {
    "evaluations": "a,b", "teacher": "host:1", "address": "host:1", "candidates": "1,2", "roads": "r.geojson",
}  # fmt: skip
"""Values that settings of these names take; others take a letter."""
CHOSEN = {"info": {"teacher"}, "answer": {"teacher"}, "generate": {"weights"}}
"""Settings of which a job needs one of several."""


def every_job() -> list[tuple[str, Job]]:
    """The jobs of both programs, with the program's name."""
    modules = {program: importlib.import_module(f"{package}.__main__") for program, package in PACKAGES.items()}
    return [(program, job) for program, module in modules.items() for job in module.JOBS]


def needed_flags(job: Job) -> list[Flag]:
    """The flags of what a job cannot do without, and that of its output."""
    fields = cli._import(job.schema).model_fields
    return [flag for flag in job.flags if fields[flag.key].is_required() or flag.name == "--out"]


def ending_of(job: Job) -> str | None:
    """What the name of the file that a job writes ends in; None if it writes a directory, or nothing."""
    named = [str(flag.metavar) for flag in job.flags if flag.name == "--out"]
    if not named or not (named[0].startswith("FILE") or named[0] in ("TEACHER", "ANSWERS")):
        return None
    return named[0].removeprefix("FILE") if named[0].startswith("FILE") else ".safetensors"


def needed_settings(job: Job) -> list[str]:
    """Settings that a job takes and cannot do without: `key=value`."""
    fields = cli._import(job.schema).model_fields
    names = {name for name, field in fields.items() if field.is_required()} | CHOSEN.get(job.name, set())
    names |= {flag.key for flag in needed_flags(job)}
    given = {name: PLACEHOLDERS.get(name, name[0]) for name in names}
    return [f"{name}={value}{(ending_of(job) or '') * (name == 'out')}" for name, value in given.items()]


def parsed_settings(program: str, argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Section:
    """The settings that a command line makes, with the real job table, schema and files; the job is not run."""
    seen: list[Section] = []
    jobs = importlib.import_module(f"{PACKAGES[program]}.__main__").JOBS
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_import", _schema_or(seen.append))
        assert cli.main(program, "", jobs, argv) == 0, " ".join(argv)
    return seen[-1]  # the check of what is on this machine has seen them, too


def _schema_or(recorder: Any) -> Any:
    real = cli._import

    def imported(path: str) -> Any:
        value = real(path)
        return value if isinstance(value, type) and issubclass(value, Section) else recorder

    return imported
