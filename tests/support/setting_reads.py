"""Which settings a job reads while it runs: a setting that nothing reads does nothing."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from shared import cli, tracing
from shared.cli import Job
from shared.config import Section, _section_of
from shared.tracing import TracingConfig

Setting = tuple[str, str]
"""Name of a section's class, and of a field in it."""


Test = TypeVar("Test", bound=Callable[..., None])


def reads_all_of(*sections: str) -> Callable[[Test], Test]:
    """Marks the test which shows that all settings of these jobs, by their sections of YAML files, are read."""
    return lambda test: test


def jobs_with_a_test() -> list[str]:
    """The sections that tests are marked with, in any module of the tests."""
    found: list[str] = []
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [mark for mark in node.decorator_list if isinstance(mark, ast.Call)]
                marks = [mark for mark in marks if ast.unparse(mark.func) == reads_all_of.__name__]
                found += [ast.literal_eval(section) for mark in marks for section in mark.args]
    return found


@contextlib.contextmanager
def recorded_reads() -> Iterator[set[Setting]]:
    """The fields that are read as attributes while the block runs, in any thread.

    Dumping, printing or comparing a section reads none of its fields, nor do its own validators: what is only
    saved or checked decides nothing.
    """
    reads: set[Setting] = set()

    def getattribute(self: Section, name: str) -> Any:
        schema = type(self)
        if name in schema.__pydantic_fields__:
            caller = sys._getframe(1)
            if not is_within_validator(caller) and not caller.f_globals["__name__"].startswith("pydantic"):
                reads.add((schema.__name__, name))
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", getattribute)
        yield reads


def is_within_validator(frame: FrameType | None) -> bool:
    """Whether a validator of a section's model reads, itself or through a property."""
    for _ in range(3):
        section = None if frame is None else frame.f_locals.get("self")
        if frame is None or not isinstance(section, Section):
            return False
        if frame.f_code.co_name in type(section).__pydantic_decorators__.model_validators:
            return True
        frame = frame.f_back
    return False


def reads_of_the_log(job: Job, settings: Section) -> set[Setting]:
    """What the command line reads of a job's settings."""
    with recorded_reads() as reads:
        assert cli.log_format(job, settings) == "text"
    return reads


def settings_of(schema: type[Section]) -> set[Setting]:
    """Every field of a schema and of the sections within it."""
    found: set[Setting] = set()
    for name, field in schema.model_fields.items():
        found.add((schema.__name__, name))
        if (section := _section_of(field.annotation)) is not None:
            found |= settings_of(section)
    return found


def reads_of_tracing() -> set[Setting]:
    """What a process reads that has an endpoint for its spans, and none to send."""
    with recorded_reads() as reads, tracing.opened(TracingConfig(endpoint="http://127.0.0.1:9"), "test"):
        pass
    return reads
