"""Everything that a report shows, read from the jobs' files into one value: tables, charts and map have no other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from shared import cli, config, provenance
from shared.errors import CompatibilityError
from shared.floors import RULES
from shared.store import Store, Trips
from student_trainer.compare import arms
from student_trainer.compare import run as compare
from student_trainer.compare.arms import Arm, Model
from student_trainer.data import documents, generated
from student_trainer.data.generated import Generated
from student_trainer.evaluate import evaluation, next_road, trip_metrics
from student_trainer.evaluate.evaluation import Evaluation, floors_of, over_runs
from student_trainer.report import study as studies
from student_trainer.report.config import ReportConfig
from student_trainer.report.curves import CURVES, Curves, all_curves
from student_trainer.report.study import Study
from student_trainer.runs.layout import COMPARISON

CURVES_WITH_CEILING = {"val/accuracy": "accuracy", "val/nll": "nll"}
"""Records whose ceiling a run's headroom tells, and what it is called there."""
CURVE_WITH_FLOOR = "val/accuracy"
"""The record that `prepare`'s floors are of."""
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
            "steps_note": arms.steps_note(self.arms),
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
        ConfigError: two evaluations have the same name, or are the same weights in one arm.
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
        comparison = documents.read(settings.comparison / COMPARISON, compare.FORMAT, "compare")
        if sorted(comparison["models"]) != sorted(names):
            raise CompatibilityError(
                f"{settings.comparison} compares {', '.join(comparison['models'])}; the evaluations are of "
                f"{', '.join(names)}: name the same"
            )
        if newer := given[0].document["metrics"].keys() - comparison["metrics"].keys():
            raise CompatibilityError(
                f"{settings.comparison} lacks {', '.join(sorted(newer))}, which the evaluations have; compare again"
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
        curves=all_curves(settings.runs, grouped, given),
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
