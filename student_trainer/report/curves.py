"""What runs have recorded while they trained, as the report draws it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from shared.errors import FileFormatError
from shared.training import logbook
from student_trainer.compare import arms
from student_trainer.compare.arms import Arm, Model
from student_trainer.evaluate import headroom, training
from student_trainer.evaluate.evaluation import Evaluation
from student_trainer.runs.layout import RunFiles

CURVES = (
    ("train/loss_next_road", "Training loss, next road", "nat"),
    ("train/loss_kl", "Training KL to the teacher", "nat"),
    ("val/accuracy", "Validation accuracy", "share"),
    ("val/nll", "Validation negative log-likelihood", "nat"),
)
"""Records of `metrics.jsonl` that are drawn."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run has recorded.

    Attributes:
        name: of the run, unlike every other's.
        arm: that the run is of, whether it was evaluated or not.
        values: steps and values by record.
        is_of_a_part: it was validated on a part of the split, or of its steps.
        ceiling: accuracy and nll that its teacher might bring it to; empty if that is not known.
    """

    name: str
    arm: str
    values: dict[str, list[list[float]]]
    is_of_a_part: bool
    ceiling: dict[str, float]


def all_curves(runs: Sequence[Path], grouped: Sequence[Arm], evaluations: Sequence[Evaluation]) -> list[Curves]:
    """Of runs, each beside the arm that it is of: an evaluated one, or one of their own."""
    names = arms.unique_names(runs)
    trained = [training.read(RunFiles(run).best) for run in runs]
    models = [
        Model(name, None if known is None else known.as_dict()) for name, known in zip(names, trained, strict=True)
    ]
    evaluated = {
        json.dumps(arms.identity(found.document["training"])): arm.name
        for found in evaluations
        for arm in grouped
        if found.document["training"] is not None and found.name in arm.models
    }
    others = {model: arm.name for arm in arms.group(models) for model in arm.models}
    result = []
    for run, model, known in zip(runs, models, trained, strict=True):
        key = None if model.training is None else json.dumps(arms.identity(model.training))
        cut = () if known is None else (known.settings.get("batch.val_trips"), known.settings.get("batch.max_steps"))
        arm = evaluated.get(key, others[model.name]) if key is not None else others[model.name]
        result.append(Curves(model.name, arm, _curves(run), any(cut), _ceiling(run)))
    return result


def _curves(run: Path) -> dict[str, list[list[float]]]:
    """Steps and values of what a run has recorded."""
    path = RunFiles(run).metrics
    try:
        records = logbook.read(path)
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist: is {run} a directory that `train` wrote?") from None
    found = {}
    for name, _, _ in CURVES:
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            found[name] = [list(values) for values in zip(*points, strict=True)]
    return found


def _ceiling(run: Path) -> dict[str, float]:
    """The best epoch's validation, and what is left to learn from there."""
    path = RunFiles(run).summary
    if not path.exists():  # not finished
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = summary.get("headroom")
        if found is None:
            return {}
        return {name: summary["best"][name] + gain for name, gain in headroom.left(found).items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
