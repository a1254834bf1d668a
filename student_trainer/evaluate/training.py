"""How weights were trained, as far as it can be known: what makes runs seeds of one arm."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from shared import config, files
from shared.config import Section
from shared.errors import ReportableError
from student_trainer.model import students
from student_trainer.runs.layout import BEST, RunFiles

log = logging.getLogger(__name__)

RULE = "shortest_path"
"""The method whose trips are of no student, whatever weights are measured beside them."""
UNDECIDING = (
    *("data", "out", "resume", "profile", "seed", "teacher", "log", "client", "tracing"),
    *("runtime.device", "runtime.threads", "runtime.compile", "batch.cache"),
)
"""Settings, or sections of them, that say where and how fast, not what; data and teacher count by their content."""
ASKING = ("weight", "sampled_weight", "head")
"""Settings of the distillation of which one must have a value for the teacher to be asked."""
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
        steps: optimizer steps of the whole run, whichever epoch was its best; None if unknown.
        exported_from: SHA-256 of the run's checkpoint, of weights that were exported from it; empty of others.
    """

    seed: int
    teacher: str
    store: str
    settings: dict[str, Any]
    steps: int | None = None
    exported_from: str = ""

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
        except ReportableError:
            continue
        if checkpoints.is_checkpoint(values):
            known = _of_checkpoint(values)
            source = "" if path == weights else files.file_digest(path)
            return known and dataclasses.replace(known, steps=_steps(path, values), exported_from=source)
    folder = weights.parent if is_published(weights) else None
    if weights.parts[-2:-1] == BEST.parts[:1]:
        folder = weights.parent.parent
    return None if folder is None else of_run(folder)


def of_student(weights: Mapping[str, str] | None, summary: Mapping[str, Any]) -> Training | None:
    """How an evaluated student was trained; None of a rule, and, with a warning, if next roads and trips are of two.

    Args:
        weights: that are measured: their file and its digest.
        summary: what `generate` says of the trips, and of the weights that it had.
    """
    made = summary.get("weights")
    if summary.get("method") == RULE:
        return None
    if weights is None:
        return None if made is None else _unchanged(made)
    known = read(Path(weights["file"]))
    if made is None or made["sha256"] == weights["sha256"] or _source(made) == _source(weights):
        return known
    log.warning(
        "%s is not %s, which the trips were generated with: next roads are of the one and trips of the other, so this "
        "evaluation says of no training and is compared as an arm of its own; give --weights the trips' own",
        weights["file"], made["file"],
    )  # fmt: skip
    return None


def _unchanged(weights: Mapping[str, str]) -> Training | None:
    """Of weights that may have changed since their digest was taken, or be gone: None then."""
    path = Path(weights["file"])
    if not path.is_file() or files.file_digest(path) != weights["sha256"]:
        return None
    return read(path)


def _source(weights: Mapping[str, str]) -> str:
    """The digest of the checkpoint that weights were exported from, or else their own."""
    known = _unchanged(weights)
    return weights["sha256"] if known is None else known.exported_from or weights["sha256"]


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
    asks = isinstance(distill, dict) and any(distill.get(name) for name in ASKING)
    address = str(settings.get("teacher", "none"))
    known = _of_settings(settings, address if asks and address != "none" else "", "")
    return known and dataclasses.replace(known, steps=_steps_of_run(RunFiles(folder)))


def _steps(path: Path, values: Mapping[str, Any]) -> int | None:
    """Of the run that a checkpoint is of; those that its schedule plans where the file lies alone."""
    folder = path.resolve().parent
    known = _steps_of_run(RunFiles(folder.parent)) if folder.name == BEST.parts[0] else None
    return _planned_steps(values) if known is None else known


def _steps_of_run(run: RunFiles) -> int | None:
    """As its summary says, or, of a run that has not finished, its newest checkpoint; None if neither can be read."""
    try:
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    if isinstance(summary, dict) and isinstance(summary.get("steps"), int):
        return int(summary["steps"])
    from student_trainer.runs import checkpoint as checkpoints  # torch takes seconds to import

    try:
        progress = checkpoints.load_tensors(run.last).get("progress")
    except ReportableError:
        return None
    return progress["step"] if isinstance(progress, dict) and isinstance(progress.get("step"), int) else None


def _planned_steps(values: Mapping[str, Any]) -> int | None:
    """Steps of all epochs, which are equally long, from where the last one that is done has ended."""
    try:
        last, epochs = values["progress"]["history"][-1], values["config"]["optim"]["epochs"]
        return int(last["step"]) // int(last["epoch"]) * int(epochs)
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None


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
