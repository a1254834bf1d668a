"""Everything that a report shows, read from the jobs' files into one value: tables, charts and map have no other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from shared import cli, config, provenance
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store, Trips
from student_trainer.evaluate import compare, generated, next_road, trip_metrics
from student_trainer.evaluate.compare import Evaluation
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


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What a report shows.

    Attributes:
        evaluations: one a model, the baseline first.
        generated: each model's trips.
        real: the pairs' real trips, in the order of the pairs.
        comparison: `comparison.json`, if there is one.
        curves: of each run, steps and values by record.
        study: findings of `tune`.
    """

    title: str
    store: Store
    evaluations: Sequence[Evaluation]
    generated: Sequence[Generated]
    real: Trips
    comparison: dict[str, Any] | None
    curves: dict[str, dict[str, list[list[float]]]]
    study: Study | None

    @property
    def names(self) -> list[str]:
        """The models, the baseline first."""
        return [evaluation.name for evaluation in self.evaluations]

    def as_dict(self) -> dict[str, Any]:
        """All but the trips, as JSON."""
        first = self.evaluations[0].document
        metrics = {
            name: {
                **{key: metric[key] for key in ("label", "unit", "group", "better", "description")},
                "models": {e.name: e.document["metrics"].get(name) for e in self.evaluations},
            }
            for name, metric in first["metrics"].items()
        }
        return {
            "title": self.title,
            "names": self.names,
            "pairs": len(self.evaluations[0].pairs),
            "split": first["generated"]["split"],
            "store": {"path": str(self.store.path), "fingerprint": self.store.fingerprint},
            "metrics": metrics,
            "cards": cards(),
            "comparison": self.comparison,
            "histograms": {e.name: e.document["histograms"] for e in self.evaluations},
            "reliability": {e.name: e.document["reliability"] for e in self.evaluations if e.document["reliability"]},
            "curves": self.curves,
            "curve_labels": {name: {"label": label, "unit": unit} for name, label, unit in CURVES},
            "search": {e.name: _search(e.document["generated"]) for e in self.evaluations},
            "environment": provenance.environment(),
            "environments": {e.name: e.document["generated"]["environment"] for e in self.evaluations},
            "commands": self._commands(),
        }

    def _commands(self) -> list[str]:
        """What makes the trips, the evaluations and the comparison again."""
        lines = []
        for evaluation in self.evaluations:
            made, settings = evaluation.document["generated"], evaluation.document["settings"]
            lines.append(_command("generate", made["settings"] | {"out": evaluation.document["trips"]}))
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
    evaluations = [compare.read(path) for path in settings.evaluations]
    for evaluation in evaluations:
        if evaluation.document["store"] != store.fingerprint:
            raise CompatibilityError(f"{evaluation.path} is an evaluation on another store than {store.path}")
        compare.check_same(evaluations[0], evaluation)
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluations of the same name: {', '.join(names)}; give each a `name` when it is made")
    trips = [generated.read(_trips_of(evaluation), store) for evaluation in evaluations]
    for evaluation, found in zip(evaluations, trips, strict=True):
        if found.pair.tolist() != evaluation.pairs["pair"].to_list():
            raise CompatibilityError(f"{_trips_of(evaluation)} has changed since {evaluation.path}; evaluate it again")
    comparison = None
    if settings.comparison is not None:
        comparison = read_document(settings.comparison / "comparison.json", compare.FORMAT, "compare")
        if comparison["models"] != names:
            raise CompatibilityError(
                f"{settings.comparison} compares {', '.join(comparison['models'])}; the evaluations are of "
                f"{', '.join(names)}: name them in the same order"
            )
    return Content(
        title=settings.title,
        store=store,
        evaluations=evaluations,
        generated=trips,
        real=store.trips(trips[0].split).take(trips[0].source_trip),
        comparison=comparison,
        curves={path.name: _curves(path) for path in settings.runs},
        study=None if settings.study is None else studies.read(settings.study),
    )


def _trips_of(evaluation: Evaluation) -> Path:
    return Path(evaluation.document["trips"])


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


def _search(summary: dict[str, Any]) -> dict[str, Any]:
    kept = ("method", "pairs", "statuses", "seconds", "trips_per_s", "search", "weights", "code_version")
    return {key: summary.get(key) for key in kept}


def _command(job: str, settings: dict[str, Any]) -> str:
    """A command line that sets every setting."""
    return cli.command("student-trainer", job, *config.as_overrides(settings))


def cards() -> list[str]:
    """The metrics of the summary."""
    declared = (*trip_metrics.METRICS, *next_road.METRICS)
    return [metric.name for metric in declared if metric.is_card]


def statuses(content: Content) -> pl.DataFrame:
    """How many trips of each model ended how: columns model, status, count."""
    rows = [
        {"model": evaluation.name, "status": status, "count": count}
        for evaluation in content.evaluations
        for status, count in evaluation.document["generated"]["statuses"].items()
    ]
    return pl.DataFrame(rows)
