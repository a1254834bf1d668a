"""Configuration: one typed schema a job; default < YAML files < dotted overrides.

A YAML file holds one section a job (`train:`, `prepare:` ...), so that one file can
describe a whole data set; a job reads its own section and ignores the others' values.
An unknown key anywhere is an error that names it.
"""

from __future__ import annotations

import json
import re
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

JOBS = frozenset(
    {
        "demo-city",
        "prepare",
        "train",
        "tune",
        "predict",
        "generate",
        "evaluate",
        "compare",
        "report",
        "bundle",
        "pipeline",
        "pretrain",
        "export",
        "serve",
        "info",
        "query",
    }
)
"""The sections that a YAML file may have."""


MOST_VALUES = 100_000
"""Of a YAML file or an override."""


class Section(pydantic.BaseModel):
    """Base of every schema: frozen, unknown keys and infinite numbers refused, a docstring under each field."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML with the plain scalars of version 1.2: `off`, `1:30` and dates are text, 3e-4 is a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or YAML 1.1 would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _first)


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
        merged = _merge(merged, _read_section(path, job))
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    return validate(schema, merged)


def validate(schema: type[S], values: dict[str, Any]) -> S:
    """Checks plain values against a schema; raises `ConfigError`."""
    try:
        return schema.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_explain(schema, issue) for issue in error.errors())) from None


def dump(config: Section) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return _to_yaml(config.model_dump(mode="json"))


def save(config: Section, job: str, path: Path) -> None:
    """Writes the resolved configuration as a YAML file with the job's section."""
    files.write_text(path, _to_yaml({job: config.model_dump(mode="json")}))


def _to_yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)  # ASCII: raw line separators would not read back


def describe(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, default as one would type it, docstring) of every setting, for `--help`."""
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
            continue
        value = field.get_default(call_default_factory=True)
        default = "required" if value is PydanticUndefined else _as_override(value)
        yield prefix + name, default, " ".join((field.description or "").split())


def _as_override(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


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
        content = _parse(path.read_text(encoding="utf-8"))
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
        nested = _parse(value)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of override {text!r}; write it in YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def _parse(text: str) -> Any:
    try:
        parsed = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        _check_size(parsed)
        return parsed
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # an explicit tag that does not fit: !!int x
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _check_size(parsed: Any) -> None:
    """Refuses what aliases make endless, or large out of proportion to its text."""
    pending, seen = [parsed], 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES} values, aliases counted each time")
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | set | tuple):
            pending += value


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `update`, key by key; the nested dictionaries of both stay as they are."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = _merge(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return merged


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
