"""Arms: models that were trained by the same settings but for the seed, and what question they answer."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shared.errors import ConfigError

Role = Literal["vanilla", "distilled", "unknown", "reference"]
RANK: tuple[Role, ...] = ("distilled", "unknown", "vanilla", "reference")
"""In which order arms are told of, after the baseline: the question is what the teacher brought."""
SEED = re.compile(r"[-_ .=/]+(?:seed|s)?[-_ .=]*\d*$")
"""What is left of `-seed1` and its like where names of seeds are cut to what they share."""
EQUAL_STEPS = 1.05
"""Up to this ratio, arms have trained for equally many steps."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Something that was evaluated.

    Attributes:
        training: `Training.as_dict`; None if it is not known.
        search: what else sets it apart, as JSON: how its trips were searched.
        is_reference: trips of a rule, without a model.
        weights: digest that tells its weights from others, in whatever form they are; empty if unknown.
    """

    name: str
    training: Mapping[str, Any] | None
    search: str = ""
    is_reference: bool = False
    weights: str = ""

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Model:
        """Of a `metrics.json`."""
        made = document["generated"]
        settings = made.get("settings", {})
        search = [made.get("method"), settings.get("search"), settings.get("candidate_top_k")]
        is_reference = made.get("method") == "shortest_path"
        training = None if is_reference else document["training"]
        known = (document.get("weights"), made.get("weights"))
        file: Mapping[str, Any] = next((one for one in known if isinstance(one, dict)), {})
        return cls(
            document["name"], training, json.dumps(search, sort_keys=True), is_reference,
            weights_of(training, str(file.get("sha256", ""))),
        )  # fmt: skip


def weights_of(training: Mapping[str, Any] | None, sha256: str) -> str:
    """The digest of a file of weights, or, if it was exported from a run's checkpoint, that of the checkpoint."""
    return str((training or {}).get("exported_from") or sha256)


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs over seeds.

    Attributes:
        name: what the names of its models share, or the one model's name.
        role: trained without a teacher, with one, unknown, or a rule that is no model.
        models: at least one.
        seeds: of each model's training; None where unknown.
        settings: those that not all arms of known training share, by dotted key.
        steps: optimizer steps of each model's run; None where unknown.
    """

    name: str
    role: Role
    models: tuple[str, ...]
    seeds: tuple[int | None, ...]
    settings: Mapping[str, Any]
    steps: tuple[int | None, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def group(models: Sequence[Model]) -> list[Arm]:
    """The arms of models, in the order of their first ones; within an arm by seed.

    A model whose training is not known is an arm of its own.

    Raises:
        ConfigError: two models of an arm have the same weights: one run would count as two.
    """
    members: dict[str, list[Model]] = {}
    for model in models:
        members.setdefault(_key(model), []).append(model)
    for found in members.values():
        _check_distinct(found)
    groups = [sorted(found, key=_seed) for found in members.values()]
    names = _names(groups)
    differing = _differing([found[0].training for found in groups])
    return [
        Arm(
            name,
            _role(found[0]),
            tuple(model.name for model in found),
            tuple(None if model.training is None else int(model.training["seed"]) for model in found),
            _settings(found[0].training, differing),
            tuple(None if model.training is None else model.training.get("steps") for model in found),
        )
        for name, found in zip(names, groups, strict=True)
    ]


def choose_baseline(arms: Sequence[Arm], wanted: str) -> Arm:
    """The arm that the others are compared with.

    Args:
        wanted: its name or that of one of its models; empty: the arm without a teacher that has most runs; if there is
            none, one called vanilla; if there is none, the first that is not a rule.

    Raises:
        ConfigError: there is none of that name.
    """
    if wanted:
        for arm in arms:
            if wanted == arm.name or wanted in arm.models:
                return arm
        known = [name for arm in arms for name in dict.fromkeys((arm.name, *arm.models))]
        raise ConfigError(f"baseline {wanted} is not among the models {', '.join(sorted(known))}")
    vanilla = [arm for arm in arms if arm.role == "vanilla"]
    if vanilla:
        return max(vanilla, key=lambda arm: (len(arm.models), arm.name == "vanilla"))
    named = [arm for arm in arms if arm.name == "vanilla"]
    return (named or [arm for arm in arms if arm.role != "reference"] or list(arms))[0]


def in_order(arms: Sequence[Arm], baseline: Arm) -> list[Arm]:
    """The baseline, then those that answer what the teacher brought, rules last; otherwise as they are."""
    return [baseline, *sorted((arm for arm in arms if arm != baseline), key=lambda arm: RANK.index(arm.role))]


def sentence(baseline: Arm) -> str:
    """Which the baseline is, and how to choose another."""
    runs = f"{len(baseline.models)} runs" if len(baseline.models) > 1 else "one run"
    kinds = {"vanilla": f"{runs} without a teacher", "distilled": f"{runs} with a teacher", "reference": "a rule"}
    return f"baseline: {baseline.name} ({kinds.get(baseline.role, runs)}); baseline=NAME chooses another"


def steps_note(found: Sequence[Arm]) -> str:
    """Which arms have trained for other numbers of steps than the baseline; empty if none has, as far as is known.

    Args:
        found: the baseline first.
    """
    usual, *others = [(arm.name, _mean_steps(arm)) for arm in found]
    if usual[1] is None:
        return ""
    apart = [one for one in others if one[1] is not None and _differ(one[1], usual[1])]
    if not apart:
        return ""
    (name, steps), *rest = [*apart, usual]
    told = [f"{name} trained {steps:,.0f} steps", *(f"{other} {number:,.0f}" for other, number in rest)]
    return f"{', '.join(told)}: part of a difference may be the steps'; see docs/trips.md"


def _mean_steps(arm: Arm) -> float | None:
    known = [steps for steps in arm.steps if steps is not None]
    return sum(known) / len(known) if known else None


def _differ(one: float, other: float) -> bool:
    return max(one, other) > EQUAL_STEPS * min(one, other)


def unique_names(paths: Sequence[os.PathLike[str]]) -> list[str]:
    """A name for each file or directory: its own, with as many of its parents as tell it from the others.

    Raises:
        ConfigError: two are the same.
    """
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise ConfigError(f"one is named twice: {', '.join(map(str, paths))}")
    parts = [os.path.abspath(path).strip(os.sep).split(os.sep) for path in paths]
    depth = 1
    while len({tuple(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _key(model: Model) -> str:
    known = model.training
    if known is None or model.is_reference:
        return json.dumps(["unknown", model.name])
    return json.dumps([*identity(known), model.search], sort_keys=True)


def identity(training: Mapping[str, Any]) -> list[Any]:
    """What is equal in the trainings of an arm's runs."""
    return [dict(sorted(training["settings"].items())), training["teacher"], training["store"]]


def _check_distinct(found: Sequence[Model]) -> None:
    """Raises `ConfigError` if two models of an arm have the same weights."""
    first: dict[str, str] = {}
    for model in found:
        if model.weights and (other := first.setdefault(model.weights, model.name)) != model.name:
            raise ConfigError(
                f"{other} and {model.name} have the same weights (SHA-256 {model.weights[:12]}...): they are one run, "
                "not two of an arm; leave one of them out"
            )


def _seed(model: Model) -> int:
    return 0 if model.training is None else int(model.training["seed"])


def _role(model: Model) -> Role:
    if model.is_reference:
        return "reference"
    if model.training is None:
        return "unknown"
    return "distilled" if model.training["teacher"] else "vanilla"


def _names(groups: Sequence[Sequence[Model]]) -> list[str]:
    """What the models of each share, made unique by the settings that differ."""
    names = [_shared(found) for found in groups]
    differing = _differing([found[0].training for found in groups])
    result: list[str] = []
    for name, found in zip(names, groups, strict=True):
        if names.count(name) > 1:
            words = [f"{key}={value}" for key, value in _settings(found[0].training, differing).items()]
            name = f"{name} ({', '.join(words)})" if words else name
        unique, number = name, 2
        while unique in result:
            unique, number = f"{name} ({number})", number + 1
        result.append(unique)
    return result


def _shared(found: Sequence[Model]) -> str:
    names = [model.name for model in found]
    if len(names) == 1:
        return names[0]
    start = SEED.sub("", _prefix(names)).strip("-_ .=/")
    end = _prefix([name[::-1] for name in names])[::-1].strip("-_ .=/")
    words = [name for name in (start, end) if name not in ("", "s", "seed") and not name.isdigit()]
    return words[0] if words else _role(found[0])


def _prefix(names: Sequence[str]) -> str:
    """What all begin with, up to the end of a word or of a number: nothing of `distilled` and `dup`."""
    low, high = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    prefix, following = low[:length], [name[length] for name in names if len(name) > length]
    for is_one in (str.isalpha, str.isdigit):
        if is_one(prefix[-1:]) and any(map(is_one, following)):
            while is_one(prefix[-1:]):
                prefix = prefix[:-1]
            break
    return prefix


def _differing(trainings: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Settings that not all arms share; what an arm without a teacher has no use for is not one of them."""
    known = [training["settings"] for training in trainings if training is not None]
    keys = list(dict.fromkeys(key for settings in known for key in settings))
    return [key for key in keys if len({json.dumps(s[key], sort_keys=True) for s in known if key in s}) > 1]


def _settings(training: Mapping[str, Any] | None, differing: Sequence[str]) -> dict[str, Any]:
    return {} if training is None else {k: v for k, v in training["settings"].items() if k in differing}
