"""The students that there are, by the name that `model.name` chooses: the only place that lists them.

An entry's settings are imported at once and import nothing slow; its architecture, and torch with it, when it is
needed. The imports stand within functions of this module, so that digests of the source cover all architectures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from shared.errors import ConfigError
from student_trainer.model.config import ModelConfig, StudentConfig

if TYPE_CHECKING:
    from student_trainer.model.student import Architecture, Student


@dataclasses.dataclass(frozen=True)
class Entry:
    """A kind of student.

    Attributes:
        settings: the schema of the section `model`, whose `name` is the entry's.
        architecture: imports and gives its `Architecture`.
        published: name of the file in a run's directory with the best weights in the architecture's public form; None
            if it has none.
    """

    settings: type[StudentConfig]
    architecture: Callable[[], Architecture[Any]]
    published: str | None = None


def _hoser() -> Architecture[Any]:
    from student_trainer.model.hoser_parts import HoserParts

    return HoserParts()


STUDENTS: dict[str, Entry] = {"hoser": Entry(ModelConfig, _hoser, published="hoser.pth")}
DEFAULT = "hoser"
"""Of settings without a name, and so of checkpoints of versions that knew no other."""


def architecture(name: str) -> Architecture[Any]:
    """The architecture of a name; raises `ConfigError` if there is none."""
    return _entry(name).architecture()


def published(name: str) -> str | None:
    """See `Entry`; raises `ConfigError` if there is no such student."""
    return _entry(name).published


def architecture_of(student: Student) -> Architecture[Any]:
    """The architecture of a student that is built."""
    return architecture(student.config.name)


def settings_from(values: Any) -> Any:
    """The section `model` of a file or a command line as settings of the student that it names.

    Raises:
        ValueError: there is no such student, or it has no such setting; `pydantic.ValidationError` for a bad value.
    """
    if isinstance(values, StudentConfig):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"expected the settings of a student, as in {{name: {DEFAULT}}}")
    name = values.get("name", DEFAULT)
    try:
        schema = _entry(str(name)).settings
    except ConfigError as error:
        raise ValueError(str(error)) from None
    unknown = sorted(map(str, values.keys() - schema.model_fields.keys()))
    if unknown and name != DEFAULT:  # the default's are found among those that --help lists
        raise ValueError(f"the student {name} has no setting {unknown[0]}; it has {', '.join(schema.model_fields)}")
    return schema.model_validate(values)


StudentSettings = Annotated[
    ModelConfig | StudentConfig, pydantic.BeforeValidator(settings_from), pydantic.SerializeAsAny()
]
"""Type of a section `model`: what `--help` lists, and any student's."""


def _entry(name: str) -> Entry:
    try:
        return STUDENTS[name]
    except KeyError:
        raise ConfigError(f"there is no student {name!r}; there are {', '.join(sorted(STUDENTS))}") from None
