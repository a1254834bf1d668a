"""What is searched: settings of a training run, their ranges, and points in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import pydantic
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from shared import config
from shared.config import Section
from shared.errors import ConfigError
from student_trainer.train.config import RecipeConfig

Value = bool | int | float | str
Point = dict[str, Value]
"""Values by dotted setting."""

FIXED = ("optim.epochs", "batch.val_trips", "batch.sample_seed", "client.", "log.", "runtime.device")
"""Settings (or their beginnings) that trials must share, or that change nothing that is measured."""


class Parameter(Section):
    """A range, or a choice."""

    low: int | float | None = None
    """Smallest value."""
    high: int | float | None = None
    """Largest value."""
    log: bool = False
    """Search the logarithm."""
    step: int | float | None = None
    """Distance between the values; a grid needs it, except for integers."""
    choices: tuple[Value, ...] | None = None
    """Values without an order, instead of a range."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Parameter:
        if self.choices is not None:
            if (self.low, self.high, self.log, self.step) != (None, None, False, None):
                raise ValueError("give choices or a range, not both")
            if len(self.choices) < 2:
                raise ValueError("choices: give at least two; a single value belongs in train.*")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError("low must be below high; a single value belongs in train.*")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0 and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("step must be above 0")
        return self

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float):
            return IntDistribution(self.low, self.high, self.log, self.step or 1)
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def corners(self) -> tuple[Value, ...]:
        """Values that must be allowed for all to be."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def __contains__(self, value: Value) -> bool:
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        if isinstance(value, bool | str) or not self.low <= value <= self.high:
            return False
        if isinstance(self.distribution, IntDistribution) and value != int(value):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9

    def describe(self) -> str:
        """For people."""
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        extra = " (log)" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{extra}"

    def grid(self) -> tuple[Value, ...] | None:
        """All values, or None if they are not countable."""
        match self.distribution:
            case CategoricalDistribution():
                return self.choices
            case IntDistribution(low=low, high=high, step=step, log=False):
                return tuple(range(low, high + 1, step))
            case FloatDistribution(low=low, step=float(step)) as found:
                return tuple(low + i * step for i in range(round((found.high - low) / step) + 1))
        return None


Space = dict[str, Parameter]
ENDS = ("low", "high", "step")

SPACE: Space = {
    "distill.weight": Parameter(low=1e-3, high=10.0, log=True),
    "distill.temperature": Parameter(low=1.0, high=5.0),
    "distill.window": Parameter(low=2, high=8),
}
"""Of the weight a wide range: up to 0.1, as used before, is too small where data is scarce. See docs/tuning.md."""

POINTS: tuple[Point, ...] = (
    {"distill.weight": 1.0, "distill.temperature": 1.0, "distill.window": 4},
    {"distill.weight": 0.3, "distill.temperature": 1.0, "distill.window": 4},
    {"distill.weight": 1.0, "distill.temperature": 2.0, "distill.window": 4},
)
"""Settings that did well before."""


def merged(given: Any) -> Any:
    """The default space with what is given laid over it; keys may be nested or dotted."""
    if not isinstance(given, Mapping):
        return given
    space: dict[str, Any] = {
        name: parameter.model_dump(exclude_defaults=True) if isinstance(parameter, Parameter) else parameter
        for name, parameter in SPACE.items()
    }
    for name, value in _flat(given):
        if value is None:
            space.pop(name, None)
        elif isinstance(value, Parameter) or "choices" in value:
            space[name] = value
        else:
            space[name] = {key: old for key, old in space.get(name, {}).items() if key != "choices"} | dict(value)
    return {name: _typed(name, value) for name, value in space.items()}


def _typed(name: str, value: Any) -> Any:
    """A range of a setting that is no integer has no integer ends, however they were written."""
    if not isinstance(value, Mapping) or _kind(name) is not float:
        return value
    return {key: float(end) if key in ENDS and type(end) is int else end for key, end in value.items()}


def _kind(name: str) -> Any:
    """The type of a setting; None if there is none of that name."""
    schema: Any = RecipeConfig
    for part in name.split("."):
        field = getattr(schema, "model_fields", {}).get(part)
        if field is None:
            return None
        schema = field.annotation
    return schema


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and what is given for each: a parameter's fields, or None."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not set(value) & set(Parameter.model_fields):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def problems(space: Space, recipe: RecipeConfig) -> Iterator[str]:
    """What is wrong with each parameter, found by trying the ends of its range: a setting does not exist, must not be
    searched, or does not take a value."""
    for name, parameter in space.items():
        if name == "seed" or name.startswith(FIXED):
            yield f"space: all trials must have the same {name}; set train.{name} instead"
            continue
        for value in parameter.corners():
            try:
                apply(recipe, {name: value})
            except ConfigError as error:
                yield f"space: {name}={value}: {error}"
                if name not in _settings():
                    break  # not of this value: there is no such setting


def _settings() -> list[str]:
    """All that a recipe has."""
    return [key for key, _, _ in config.describe(RecipeConfig)]


def check_point(point: Point, space: Space) -> None:
    """Refuses a point that is not in the space.

    Raises:
        ConfigError: naming the setting.
    """
    for name, value in point.items():
        if name not in space:
            raise ConfigError(f"points: {name} is not searched; searched are {', '.join(space)}")
        if value not in space[name]:
            raise ConfigError(f"points: {name}={value} is not within {space[name].describe()}")


def recommended(space: Space) -> tuple[Point, ...]:
    """The points that did well before, as far as the space has them."""
    found: list[Point] = []
    for point in POINTS:
        known = {name: value for name, value in point.items() if name in space}
        try:
            check_point(known, space)
        except ConfigError:
            continue
        if known and known not in found:
            found.append(known)
    return tuple(found)


def apply(recipe: RecipeConfig, values: Mapping[str, Value]) -> RecipeConfig:
    """The recipe with these values.

    Raises:
        ConfigError: a setting does not exist or does not take its value.
    """
    nested: dict[str, Any] = recipe.model_dump(mode="json")
    for name, value in values.items():
        *path, last = name.split(".")
        section = nested
        for part in path:
            inner = section.get(part)
            if not isinstance(inner, dict):
                inner = section[part] = {}
            section = inner
        section[last] = value
    return config.validate(RecipeConfig, nested)


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """A trial's values."""
    point: Point = {}
    for name, parameter in space.items():
        match parameter.distribution:
            case CategoricalDistribution(choices=choices):
                point[name] = trial.suggest_categorical(name, choices)  # type: ignore[assignment]
            case IntDistribution(low=low, high=high, log=log, step=step):
                point[name] = trial.suggest_int(name, low, high, log=log, step=step)
            case FloatDistribution() as found:
                point[name] = trial.suggest_float(name, found.low, found.high, log=found.log, step=found.step)
    return point


def grid(space: Space) -> list[Point]:
    """Every point of a space of countable parameters.

    Raises:
        ConfigError: one has no step.
    """
    axes = {name: parameter.grid() for name, parameter in space.items()}
    if endless := [name for name, axis in axes.items() if axis is None]:
        raise ConfigError(f"sampler grid: {endless[0]} has no step; give space.{endless[0]}.step or choices")
    values = [axis for axis in axes.values() if axis is not None]
    return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*values)]
