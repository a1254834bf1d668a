"""Configuration: one typed schema a job; default < YAML files < dotted overrides.

A YAML file holds one section a job (`train:`, `prepare:` ...), so that one file can
describe a whole data set; a job reads its own section and ignores the others' values.
An unknown key anywhere is an error that names it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import PydanticUndefined

from shared import files
from shared.errors import ConfigError

JOBS = frozenset({"demo-city", "prepare", "train", "predict", "pretrain", "export", "serve", "info", "query"})
"""The sections that a YAML file may have."""


class Section(pydantic.BaseModel):
    """Base of every schema: frozen, unknown keys refused, a docstring under each field."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


S = TypeVar("S", bound=Section)


def load(schema: type[S], job: str, paths: Sequence[Path] = (), overrides: Sequence[str] = ()) -> S:
    """Builds the configuration of a job.

    Args:
        schema: the job's root schema.
        job: its section in the YAML files.
        paths: YAML files; a later one wins, key by key.
        overrides: `a.b=value`, the value in YAML; a later one wins.

    Raises:
        ConfigError: naming the file or key, what is wrong and what would be right.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read_section(path, job))
    for override in overrides:
        _merge(merged, _parse_override(override))
    return validate(schema, merged)


def validate(schema: type[S], values: dict[str, Any]) -> S:
    """Checks plain values against a schema; raises `ConfigError`."""
    try:
        return schema.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_explain(schema, issue) for issue in error.errors())) from None


def dump(config: Section) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save(config: Section, job: str, path: Path) -> None:
    """Writes the resolved configuration as a YAML file with the job's section."""
    values = {job: config.model_dump(mode="json")}
    files.write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def describe(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, default, docstring) of every setting, for `--help`."""
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
            continue
        if field.default is not PydanticUndefined:
            default = "none" if field.default is None else str(field.default)
        else:
            default = "required" if field.default_factory is None else str(field.get_default(call_default_factory=True))
        yield prefix + name, default, " ".join((field.description or "").split())


def _section_of(annotation: Any) -> type[Section] | None:
    """The schema of a nested section (also when it is optional), or None for a value."""
    candidates = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        candidates = list(typing.get_args(annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _read_section(path: Path, job: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(v, dict | None) for v in content.values()):
        raise ConfigError(f"{path}: expected a mapping from job names to their settings, as in 'train: {{...}}'")
    if unknown := sorted(str(name) for name in set(content) - JOBS):
        raise ConfigError(f"{path}: unknown job {', '.join(unknown)}; jobs are {', '.join(sorted(JOBS))}")
    return content.get(job) or {}


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part for part in key.split(".")):
        raise ConfigError(f"cannot read override {text!r}; write key=value, for example distill.window=4")
    try:
        nested = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of override {text!r}; write it in YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _explain(schema: type[Section], issue: Any) -> str:
    where = ".".join(str(part) for part in issue["loc"]) or "configuration"
    if issue["type"] == "extra_forbidden":
        known = _keys_beside(schema, issue["loc"])
        return f"unknown setting {where}; known here: {', '.join(known)}"
    if issue["type"] == "missing":
        return f"{where} is required"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + (f" (got {issue['input']!r})" if issue["loc"] else "")


def _keys_beside(schema: type[Section], location: tuple[Any, ...]) -> list[str]:
    for part in location[:-1]:
        section = _section_of(schema.model_fields[part].annotation) if part in schema.model_fields else None
        if section is None:
            break
        schema = section
    return list(schema.model_fields)
