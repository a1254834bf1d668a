"""How weights were trained, as far as it can be known: what makes runs seeds of one arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from shared import config
from shared.config import Section
from shared.errors import ReportableError
from student_trainer.model import students
from student_trainer.runs.layout import BEST, RunFiles

UNDECIDING = (
    *("data", "out", "resume", "profile", "seed", "teacher", "log", "client"),
    *("runtime.device", "runtime.threads", "runtime.compile", "batch.cache"),
)
"""Settings, or sections of them, that say where and how fast, not what; data and teacher count by their content."""
NOTHING = (("continue_to", 0),)
"""Values that say no more than that older versions had no such setting."""


class _AnySettings(Section):
    """The settings of any version of `train`."""

    model_config = pydantic.ConfigDict(extra="allow")


@dataclasses.dataclass(frozen=True)
class Training:
    """What decided some weights.

    Attributes:
        seed: of the run.
        teacher: revision of the teacher's weights, or its address where that is all that is known; empty without.
        store: fingerprint of the data; empty if unknown.
        settings: all others that decide, by dotted key; those of the distillation only where there is a teacher.
    """

    seed: int
    teacher: str
    store: str
    settings: dict[str, Any]

    @property
    def distils(self) -> bool:
        """Whether there was a teacher."""
        return bool(self.teacher)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def read(weights: Path) -> Training | None:
    """Of a checkpoint, or of a run's exported weights; None if nothing is known, as of others' `state_dict` files.

    A file that is damaged is not known either: who loads it says so.
    """
    from student_trainer.runs import checkpoint as checkpoints  # torch takes seconds to import

    run = RunFiles(weights.parent)
    candidates = [weights, run.best] if is_published(weights) else [weights]
    for path in candidates:
        try:
            values = checkpoints.load_tensors(path)
            if checkpoints.is_checkpoint(values):
                return _of_checkpoint(values)
        except ReportableError:
            continue
    folder = weights.parent if is_published(weights) else None
    if weights.parts[-2:-1] == BEST.parts[:1]:
        folder = weights.parent.parent
    return None if folder is None else of_run(folder)


def is_published(weights: Path) -> bool:
    """Whether a file is called as what `train` writes beside a run's checkpoints: the best weights in public form."""
    return weights.name in {entry.published for entry in students.STUDENTS.values()}


def of_run(folder: Path) -> Training | None:
    """Of a directory that `train` wrote, by its saved settings; None if they are not there."""
    try:
        settings = config.load(_AnySettings, "train", [RunFiles(folder).config]).model_dump(mode="json")
    except ReportableError:
        return None
    distill = settings.get("distill")
    weight = distill.get("weight") if isinstance(distill, dict) else None
    address = str(settings.get("teacher", "none"))
    return _of_settings(settings, "" if address == "none" or not weight else address, "")


def _of_checkpoint(values: Mapping[str, Any]) -> Training | None:
    settings = values.get("config")
    if not isinstance(settings, dict):
        return None
    return _of_settings(settings, str(values.get("teacher_revision") or ""), str(values.get("store") or ""))


def _of_settings(settings: dict[str, Any], teacher: str, store: str) -> Training | None:
    seed = settings.get("seed")
    if not isinstance(seed, int):
        return None
    idle = UNDECIDING if teacher else (*UNDECIDING, "distill")
    deciding = {
        key: value
        for key, value in _leaves(settings)
        if not any(key == prefix or key.startswith(f"{prefix}.") for prefix in idle) and (key, value) not in NOTHING
    }
    return Training(seed, teacher, store, deciding)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value
