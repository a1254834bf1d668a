"""Configuration: one typed schema a job; default < YAML files < dotted overrides.

A YAML file holds one section a job (`train:`, `prepare:` ...), so that one file can
describe a whole data set; a job reads its own section and ignores the others' values.
An unknown key anywhere is an error that names it.

After `key=` the schema's type decides: a setting whose type is text or a path takes the characters as they are, a list
of such takes them cut at commas, everything else is YAML. Nothing is none, or no text. `as_overrides` is the inverse.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from shared import files, jobs
from shared.errors import ConfigError

log = logging.getLogger(__name__)

JOBS = frozenset(jobs.STUDENT_TRAINER) | frozenset(jobs.TEACHER_SERVER)
"""The sections that a YAML file may have."""


MOST_VALUES = 100_000
"""Of a YAML file or an override."""


class Section(pydantic.BaseModel):
    """Base of every schema: frozen, unknown keys and infinite numbers refused, a docstring under each field."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _empty(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """No value stands for an empty list, no text for none where that is allowed; no path is not the working
        directory."""
        if value not in (None, "") or info.field_name is None:
            return value
        annotation = cls.model_fields[info.field_name].annotation
        if value is None:
            return () if _is_list(annotation) else None
        if _kind_of(annotation) == "text":
            if type(None) in _alternatives(annotation):
                return None
            if str not in _alternatives(annotation) and PATHS & set(_alternatives(annotation)):
                raise ValueError("expected a path; write . for the working directory")
        return value


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
"""A setting that seeds random numbers: what every generator takes."""

S = TypeVar("S", bound=Section)
REQUIRED = "required"
"""What `describe` says instead of a default where there is none."""

PATHS = frozenset({Path, PurePath})
Kind = Literal["text", "texts", "yaml"]
"""How what follows `key=` is read: as it is, as it is between commas, or as YAML."""


class _Loader(yaml.SafeLoader):
    """YAML with the plain scalars of version 1.2: `off`, `1:30` and dates are text, 3e-4 is a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or YAML 1.1 would read as something else."""


class _LineDumper(_Dumper):
    """Writes line breaks in text as escapes."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A scalar on one line."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


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
_LineDumper.add_representer(str, _LineDumper.represent_text)


def load(
    schema: type[S],
    job: str,
    paths: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    flags: Mapping[str, str | bool | Sequence[str]] | None = None,
) -> S:
    """Builds the configuration of a job.

    Args:
        schema: the job's root schema.
        job: its section in the YAML files.
        paths: YAML files; a later one wins, key by key.
        overrides: `a.b=value`, see `Kind`; a later one wins.
        flags: dotted key to what its flag was given; they win over files, and overrides over them.

    Raises:
        ConfigError: naming the file or key, what is wrong and what would be right.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, _read_section(path, job))
    for key, given in (flags or {}).items():
        if isinstance(given, str) and kind_of(schema, key) == "texts":
            given = _texts(key, given)
        merged = _merge(merged, _nested(key, given))
    for override in overrides:
        merged = _merge(merged, _parse_override(schema, override))
    return validate(schema, merged)


def validate(schema: type[S], values: dict[str, Any]) -> S:
    """Checks plain values against a schema; raises `ConfigError`."""
    try:
        return schema.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_explain(schema, issue) for issue in error.errors())) from None


def dump(config: Section) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return to_yaml(config.model_dump(mode="json"))


def save(config: Section, job: str, path: Path) -> None:
    """Writes the resolved configuration as a YAML file with the job's section."""
    files.write_text(path, to_yaml({job: config.model_dump(mode="json")}))


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`, each of them, which `load` reads back as they are.

    Args:
        values: what `model_dump(mode="json")` gives.
    """
    return [f"{key}={_as_override(value)}" for key, value in _leaves(values)]


def differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Dotted keys of settings, as `model_dump` gives them, that both do not share, in the order of the first."""
    ours, theirs = dict(_leaves(values)), dict(_leaves(others))
    keys = dict.fromkeys([*ours, *theirs])
    return [key for key in keys if key not in ours or key not in theirs or ours[key] != theirs[key]]


def in_force(config: Section) -> str:
    """The settings that are not as by default, in one line that a shell would read; passwords in URLs are left out.

    Read back, it gives all settings as they hold.
    """
    defaults = set(_defaults(type(config)))
    given = [text for text in as_overrides(config.model_dump(mode="json")) if text not in defaults]
    return re.sub(r"(://[^:/@\s']*:)[^@\s']+@", r"\1...@", shlex.join(given))


def _defaults(schema: type[Section], prefix: str = "") -> Iterator[str]:
    """What `as_overrides` gives of settings that need not be told: in sections that are there if nothing is said."""
    for name, field in schema.model_fields.items():
        section, default = _section_of(field.annotation), field.get_default(call_default_factory=True)
        if isinstance(default, Section) and section is not None:
            whole = set(as_overrides({prefix + name: default.model_dump(mode="json")}))
            yield from (text for text in _defaults(section, f"{prefix}{name}.") if text in whole)
        elif default is not PydanticUndefined and section is None:
            yield f"{prefix}{name}={_default_text(field)}"


def _default_text(field: FieldInfo) -> str:
    """The default as one would type it, and as it is once it has been checked."""
    value, kinds = field.get_default(call_default_factory=True), _alternatives(field.annotation)
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    return REQUIRED if value is PydanticUndefined else _as_override(to_jsonable_python(value))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _as_override(value: Any) -> str:
    """What follows `key=`: nothing for none, text as it is, all else in YAML."""
    if value is None or isinstance(value, str):
        return value or ""
    text = yaml.dump(value, Dumper=_LineDumper, sort_keys=False, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that a configuration file may hold."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)  # ASCII: raw line separators would not read back


def describe(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, default as one would type it, docstring) of every setting, for `--help`."""
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
            continue
        yield prefix + name, _default_text(field), " ".join((field.description or "").split())


def kind_of(schema: type[Section], key: str) -> Kind:
    """How a setting is written after `key=`; YAML for one that there is not."""
    annotation: Any = schema
    for part in key.split("."):
        annotation = _below(annotation, part)
    return _kind_of(annotation)


def _below(annotation: Any, name: str) -> Any:
    """The type of a section's field or a mapping's value; None if there is no such."""
    if (section := _section_of(annotation)) is not None:
        return section.model_fields[name].annotation if name in section.model_fields else None
    mappings = [kind for kind in _alternatives(annotation) if typing.get_origin(kind) is dict]
    return typing.get_args(mappings[0])[1] if mappings else None


def _kind_of(annotation: Any) -> Kind:
    """Text if it may be text or a path, whatever else it may be; of a list, what its elements are."""
    alternatives = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    if any(_is_text(kind) for kind in alternatives):
        return "text"
    if len(alternatives) == 1 and typing.get_origin(alternatives[0]) in (tuple, list):
        elements = [kind for kind in typing.get_args(alternatives[0]) if kind is not Ellipsis]
        if elements and all(_kind_of(kind) == "text" for kind in elements):
            return "texts"
    return "yaml"


def _is_list(annotation: Any) -> bool:
    """Whether it is a list of any length, and nothing else."""
    alternatives = _alternatives(annotation)
    return len(alternatives) == 1 and (
        typing.get_origin(alternatives[0]) is list or Ellipsis in typing.get_args(alternatives[0])
    )


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, str | PurePath)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, nested ones too, without what `Annotated` adds to them; of anything else itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _section_of(annotation: Any) -> type[Section] | None:
    """The schema of a nested section (also when it is optional), or None for a value."""
    for candidate in _alternatives(annotation):
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
        near = difflib.get_close_matches(unknown[0], sorted(JOBS), 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{path}: unknown job {', '.join(unknown)}{meant}; jobs are {', '.join(sorted(JOBS))}")
    if content and job not in content:
        log.warning("%s has nothing for %s: its settings are of %s", path, job, ", ".join(sorted(content)))
    return content.get(job) or {}


def _parse_override(schema: type[Section], text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part for part in key.split(".")):
        known = [name for name, _, _ in describe(schema)]
        near = similar(key.lstrip("-"), known)
        example = f"{near[0]}={value or 'VALUE'}" if near else f"{known[0]}=VALUE"
        raise ConfigError(f"cannot read override {text!r}; write key=value, for example {example}")
    kind = kind_of(schema, key)
    if kind == "text":
        return _nested(key, value)
    if kind == "texts":
        return _nested(key, _texts(key, value))
    try:
        return _nested(key, _parse(value))
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of override {text!r}; write it in YAML") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def _texts(key: str, value: str) -> list[Any]:
    """A,B or, for what holds commas or blanks at an end, a list in YAML: ['A,1', B]."""
    if not value.startswith("["):
        return _split(value)
    try:
        parsed = _parse(value)
    except yaml.YAMLError:
        parsed = None
    if not isinstance(parsed, list):
        raise ConfigError(f"cannot read the list {key}={value}; after [ it is YAML: write ['A','B']")
    return parsed


def split_commas(value: Any) -> Any:
    """A validator's first step for a list of anything: A,B in one text is cut; one number is a list of one."""
    if isinstance(value, str):
        return _split(value)
    return [value] if isinstance(value, int) else value


def _split(text: str) -> list[str]:
    """What stands between commas, without blanks around it."""
    return [part.strip() for part in text.split(",") if part.strip()]


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


def similar(wanted: str, keys: Sequence[str], most: int = 3) -> list[str]:
    """Those of some dotted keys that somebody who wrote `wanted` may have meant, the likeliest first.

    The same last part counts most, then initials (`lr`), beginnings (`temp`), and letters in common.
    """
    wanted = wanted.replace("-", "_").lower()
    scores = {key: _likeness(wanted, key) for key in keys}
    likely = sorted((key for key in keys if scores[key] >= 0.7), key=lambda key: (-scores[key], key.count(".")))
    return likely[:most]


def _likeness(wanted: str, key: str) -> float:
    """1 for the same last part and the same or no section, down to 0."""
    section, _, name = wanted.rpartition(".")
    candidate_section, _, candidate = key.rpartition(".")
    if not name:
        return 0.0
    if name == candidate:
        score = 1.0
    elif name == "".join(word[:1] for word in candidate.split("_")) and len(name) > 1:
        score = 0.95
    elif min(len(name), len(candidate)) > 2 and (candidate.startswith(name) or name.startswith(candidate)):
        score = 0.9
    else:
        score = difflib.SequenceMatcher(None, name, candidate).ratio()
    if section and not f".{candidate_section}".endswith(f".{section}"):
        score -= 0.1
    return score


def _explain(schema: type[Section], issue: Any) -> str:
    where = ".".join(str(part) for part in issue["loc"]) or "configuration"
    if issue["type"] == "extra_forbidden":
        known = _keys_beside(schema, issue["loc"])
        near = similar(where, [key for key, _, _ in describe(schema)])
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        return f"unknown setting {where}{meant}; known here: {', '.join(known)}"
    if issue["type"] == "missing":
        return f"{where} is required"
    message = issue["msg"].removeprefix("Value error, ")
    if issue["type"] in ("tuple_type", "list_type"):
        message = "expected a list, as in [1, 2]"
    return f"{where}: {message}" + (f" (got {issue['input']!r})" if issue["loc"] else "")


def _keys_beside(schema: type[Section], location: tuple[Any, ...]) -> list[str]:
    for part in location[:-1]:
        section = _section_of(schema.model_fields[part].annotation) if part in schema.model_fields else None
        if section is None:
            break
        schema = section
    return list(schema.model_fields)
