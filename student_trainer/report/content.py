"""Everything that a report shows, read from the jobs' files into one value: tables, charts and map have no other."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import cli, config, provenance
from shared.errors import CompatibilityError, FileFormatError
from shared.store import Store, Trips
from student_trainer.evaluate import arms, compare, evaluation, generated, headroom, next_road, training, trip_metrics
from student_trainer.evaluate.arms import Arm, Model
from student_trainer.evaluate.evaluation import Evaluation, floors_of, over_runs
from student_trainer.evaluate.generated import Generated, read_document
from student_trainer.report import study as studies
from student_trainer.report.config import ReportConfig
from student_trainer.report.study import Study
from student_trainer.runs.layout import RunFiles

CURVES = (
    ("train/loss_next_road", "Training loss, next road", "nat"),
    ("train/loss_kl", "Training KL to the teacher", "nat"),
    ("val/accuracy", "Validation accuracy", "share"),
    ("val/nll", "Validation negative log-likelihood", "nat"),
)
"""Records of `metrics.jsonl` that are drawn."""


CURVES_WITH_CEILING = {"val/accuracy": "accuracy", "val/nll": "nll"}
"""Records whose ceiling a run's headroom tells, and what it is called there."""
CURVE_WITH_FLOOR = "val/accuracy"
"""The record that `prepare`'s floors are of."""
RULES = {
    "nearest_to_destination": "the candidate nearest to the destination",
    "first_order_markov": "the most frequent next road",
    "second_order_markov": "the most frequent next road after the last two",
}
"""Of the floors in a store's manifest, those that are rules."""


SHOWN_BINS = 40
"""Of a histogram, up to where nearly all real values lie."""


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What a report shows.

    Attributes:
        arms: the baseline first.
        evaluations: one a model, in the order of the arms.
        generated: each model's trips.
        real: the pairs' real trips, in the order of the pairs.
        comparison: `comparison.json`, if there is one.
        curves: of each run.
        study: findings of `tune`.
    """

    title: str
    store: Store
    arms: Sequence[Arm]
    evaluations: Sequence[Evaluation]
    generated: Sequence[Generated]
    real: Trips
    comparison: dict[str, Any] | None
    curves: Sequence[Curves]
    study: Study | None

    @property
    def names(self) -> list[str]:
        """The models, arm by arm."""
        return [evaluation.name for evaluation in self.evaluations]

    def runs(self, arm: Arm) -> list[Evaluation]:
        """The evaluations of an arm."""
        return [self.evaluations[self.names.index(model)] for model in arm.models]

    def as_dict(self) -> dict[str, Any]:
        """All but the trips, as JSON."""
        first = self.evaluations[0].document
        return {
            "title": self.title,
            "names": self.names,
            "arms": [arm.as_dict() for arm in self.arms],
            "baseline_choice": arms.sentence(self.arms[0]),
            "pairs": len(self.evaluations[0].pairs),
            "split": first["generated"]["split"],
            "store": {"path": str(self.store.path), "fingerprint": self.store.fingerprint},
            "metrics": self._metrics(),
            "cards": cards(),
            "floors": floors_of(self.evaluations),
            "left_out": first.get("left_out", ""),
            "comparison": self.comparison,
            "histograms": {arm.name: _averaged(self.runs(arm)) for arm in self.arms},
            "reliability": {e.name: e.document["reliability"] for e in self.evaluations if e.document["reliability"]},
            "curves": {curves.name: curves.values for curves in self.curves},
            "curve_arms": {curves.name: curves.arm for curves in self.curves},
            "curve_floors": {CURVE_WITH_FLOOR: self._validation_floor()} if self._validation_floor() else {},
            "curve_ceilings": self._ceilings(),
            "curve_labels": {name: {"label": label, "unit": unit} for name, label, unit in CURVES},
            "search": {e.name: _search(e.document["generated"]) for e in self.evaluations},
            "environment": provenance.environment(),
            "environments": {e.name: e.document["generated"]["environment"] for e in self.evaluations},
            "commands": self._commands(),
        }

    def _metrics(self) -> dict[str, Any]:
        """Words of each metric, and each arm's values: those of the comparison, which knows more, if there is one."""
        found = {arm.name: over_runs(self.runs(arm)) for arm in self.arms}
        metrics = {}
        for name, metric in self.evaluations[0].document["metrics"].items():
            words = {key: metric[key] for key in ("label", "unit", "group", "better", "description")}
            values = {arm: known[name] for arm, known in found.items() if name in known}
            if self.comparison is not None:
                values |= self.comparison["metrics"][name]["arms"]
            metrics[name] = {**words, "arms": values}
        return metrics

    def _validation_floor(self) -> dict[str, Any] | None:
        """The best rule on validation, which `prepare` measured on all of its steps; None if runs measured on fewer."""
        floors = self.store.manifest.get("floors", {})
        known = {rule: floors[rule] for rule in RULES if rule in floors}
        if not known or any(curves.is_of_a_part for curves in self.curves):
            return None
        best = max(known, key=lambda rule: known[rule])
        return {"label": f"floor: {RULES[best]}", "value": known[best]}

    def _ceilings(self) -> dict[str, list[dict[str, Any]]]:
        """What each arm would reach with all that its teacher knows, over its runs that have measured it."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record, name in CURVES_WITH_CEILING.items():
            for arm in dict.fromkeys(curves.arm for curves in self.curves):
                values = [curves.ceiling[name] for curves in self.curves if curves.arm == arm and curves.ceiling]
                if values:
                    line = {"arm": arm, "label": f"{arm}, ceiling", "value": sum(values) / len(values)}
                    found.setdefault(record, []).append(line)
        return found

    def _commands(self) -> list[str]:
        """What makes the trips, the evaluations and the comparison again."""
        lines = []
        for found in self.evaluations:
            made, settings = found.document["generated"], found.document["settings"]
            lines.append(_command("generate", made["settings"] | {"out": settings["trips"]}))
            lines.append(_command("evaluate", settings))
        if self.comparison is not None:
            lines.append(_command("compare", self.comparison["settings"]))
        return lines


def read(settings: ReportConfig) -> Content:
    """Reads all that the settings name.

    Raises:
        FileFormatError: a file is missing or damaged.
        CompatibilityError: they are of different stores or OD pairs.
        ConfigError: two evaluations have the same name.
    """
    store = Store(settings.data)
    given = [evaluation.read(path) for path in settings.evaluations]
    for found in given:
        if found.document["store"] != store.fingerprint:
            raise CompatibilityError(f"{found.path} is an evaluation on another store than {store.path}")
        evaluation.check_same(given[0], found)
    names = evaluation.check_names(given)
    comparison = None
    if settings.comparison is not None:
        comparison = read_document(settings.comparison / "comparison.json", compare.FORMAT, "compare")
        if sorted(comparison["models"]) != sorted(names):
            raise CompatibilityError(
                f"{settings.comparison} compares {', '.join(comparison['models'])}; the evaluations are of "
                f"{', '.join(names)}: name the same"
            )
    grouped = arms.group([Model.of_document(found.document) for found in given])
    baseline = arms.choose_baseline(grouped, "" if comparison is None else comparison["baseline"])
    grouped = arms.in_order(grouped, baseline)
    ordered = [given[names.index(model)] for arm in grouped for model in arm.models]
    trips = [_trips(found, store) for found in ordered]
    return Content(
        title=settings.title,
        store=store,
        arms=grouped,
        evaluations=ordered,
        generated=trips,
        real=store.trips(trips[0].split).take(trips[0].source_trip),
        comparison=comparison,
        curves=_all_curves(settings.runs, grouped, given),
        study=None if settings.study is None else studies.read(settings.study),
    )


def _trips(found: Evaluation, store: Store) -> Generated:
    """The trips that were evaluated, as they were then."""
    place = evaluation.trips_of(found)
    trips = generated.read(place, store)
    same_files = trips.summary.get("files") == found.document["generated"].get("files")
    if not same_files or trips.pair.tolist() != found.pairs["pair"].to_list():
        raise CompatibilityError(f"{place} has changed since {found.path}; evaluate it again")
    return trips


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


def _all_curves(runs: Sequence[Path], grouped: Sequence[Arm], evaluations: Sequence[Evaluation]) -> list[Curves]:
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


def _averaged(runs: Sequence[Evaluation]) -> dict[str, Any]:
    """The histograms of an arm: shares are means over its runs, whose real sides and edges are the same."""
    found = {}
    for name, first in runs[0].document["histograms"].items():
        sides = [run.document["histograms"][name]["generated"] for run in runs]
        mean = {**first, "generated": [sum(values) / len(values) for values in zip(*sides, strict=True)]}
        found[name] = coarser(mean)
    return found


def coarser(histogram: dict[str, Any]) -> dict[str, Any]:
    """A histogram as one can read it: bins are joined until `SHOWN_BINS` hold nearly all real values.

    What is left of the bins at the end joins the last value, which has no upper edge.
    """
    edges, real = histogram["edges"], histogram["real"]
    needed, reached = 0.995 * sum(real), 0.0
    used = len(edges) - 1
    for number, share in enumerate(real[:-1]):
        reached += share
        if reached >= needed:
            used = number + 1
            break
    width = max(1, math.ceil(used / SHOWN_BINS))
    whole = (len(edges) - 1) // width * width
    joined = {"edges": edges[: whole + 1 : width]}
    for side in ("real", "generated"):
        values = histogram[side]
        joined[side] = [sum(values[i : i + width]) for i in range(0, whole, width)] + [sum(values[whole:])]
    return {**histogram, **joined}


def _curves(run: Path) -> dict[str, list[list[float]]]:
    """Steps and values of what a run has recorded."""
    path = RunFiles(run).metrics
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist: is {run} a directory that `train` wrote?") from None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
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


def _search(summary: dict[str, Any]) -> dict[str, Any]:
    kept = ("method", "pairs", "statuses", "seconds", "trips_per_s", "search", "weights", "code_version")
    return {key: summary.get(key) for key in kept}


def _command(job: str, settings: dict[str, Any]) -> str:
    """A command line that sets every setting."""
    return cli.command("student-trainer", job, *config.as_overrides(settings))


def cards() -> list[str]:
    """The metrics of the summary, in the order of the verdicts."""
    steps = [metric.name for metric in next_road.METRICS if metric.is_card]
    return steps + [metric.name for metric in trip_metrics.METRICS if metric.is_card]
