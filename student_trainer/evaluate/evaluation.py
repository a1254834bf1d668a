"""What `evaluate` wrote, read again: of one model, and of an arm's runs together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from shared.errors import CompatibilityError, ConfigError, FileFormatError
from student_trainer.data import documents, tables
from student_trainer.evaluate import next_road, trip_metrics
from student_trainer.runs.layout import EVALUATION

FORMAT = "hoser-evaluation/2"
"""2: how the weights were trained, accuracy where there is a choice, floors; where the trips are from here."""
NEXT_ROAD = "next_road.parquet"
"""What was measured of each trip of the split."""
FORMAT_OF_SAMPLED = "hoser-evaluation-of-sampled/1"
"""Of trips that were sampled from a teacher: no pairs, so nothing to compare."""
OTHERS = {
    FORMAT_OF_SAMPLED: "is of trips that were sampled from a teacher: they have no pairs, so they cannot be compared; "
    "give evaluations of trips that `student-trainer generate` wrote"
}
HOLDS = {
    **dict.fromkeys(("name", "store", "trips", "trips_at"), (str,)),
    **dict.fromkeys(("generated", "settings", "metrics", "histograms", "floors"), (dict,)),
    **dict.fromkeys(("training", "reliability"), (dict, type(None))),
}
"""What is read of a `metrics.json`, and its types."""
KEYS = {"pair": pl.Int64, "source_trip": pl.Int64, "origin": pl.Int64, "destination": pl.Int64}
SHOWN = ("real_distance_km", "distance_km", "duration_s")
"""Columns of pairs that reports show beside the metrics."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` wrote."""

    path: Path
    document: dict[str, Any]
    pairs: pl.DataFrame
    next_road: pl.DataFrame | None

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.document["name"])


def read(path: Path) -> Evaluation:
    """An evaluation; raises `FileFormatError`."""
    document = documents.read(path / EVALUATION, FORMAT, "evaluate", OTHERS)
    wrong = [name for name, types in HOLDS.items() if not isinstance(document.get(name, ...), types)]
    if wrong:
        raise FileFormatError(f"{path / 'metrics.json'} lacks {', '.join(wrong)}; make it again with `evaluate`")
    try:
        return Evaluation(path, document, *_tables(path, document["reliability"] is not None))
    except FileFormatError as error:
        raise FileFormatError(f"{error}; evaluate again (`student-trainer evaluate`)") from None


def _tables(path: Path, has_next_roads: bool) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """What was measured of each pair, and of each trip of the split."""
    columns: dict[str, Any] = {**KEYS, **dict.fromkeys(SHOWN, pl.Float64)}
    columns |= {metric.column: pl.Boolean if metric.is_flag else pl.Float64 for metric in trip_metrics.METRICS}
    with tables.Reader() as reader:
        pairs = tables.read_columns(path / "pairs.parquet", columns, reader.read)
        if not has_next_roads:
            return pairs, None
        sums = {name: pl.Float64 for metric in next_road.METRICS for name in (metric.column, f"{metric.column}_count")}
        return pairs, tables.read_columns(path / NEXT_ROAD, {"trip": pl.Int64, **sums}, reader.read)


def check_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The models' names; raises `ConfigError` if two have the same."""
    names = [evaluation.name for evaluation in evaluations]
    same = [f"{e.name} ({e.path})" for e in evaluations if names.count(e.name) > 1]
    if same:
        raise ConfigError(f"evaluations of the same name: {', '.join(same)}; give each a `name` when it is made")
    return names


def check_same(baseline: Evaluation, other: Evaluation) -> None:
    """Raises `CompatibilityError` if two evaluations are not about the same OD pairs of the same store."""
    if baseline.document["store"] != other.document["store"]:
        raise CompatibilityError(f"{baseline.path} and {other.path} are evaluations on different stores")
    splits = [evaluation.document["generated"]["split"] for evaluation in (baseline, other)]
    keys = [evaluation.pairs.select(list(KEYS)) for evaluation in (baseline, other)]
    if splits[0] != splits[1] or not keys[0].equals(keys[1]):
        raise CompatibilityError(
            f"{baseline.path} ({len(keys[0])} of {splits[0]}) and {other.path} ({len(keys[1])} of {splits[1]}) are not "
            "about the same OD pairs; generate both with the same split, pairs and seed"
        )


def trips_of(evaluation: Evaluation) -> Path:
    """The directory of the trips, from where the evaluation is: both may have moved together, or only one of them.

    Raises:
        FileFormatError: it is in neither place.
    """
    places = [Path(os.path.realpath(evaluation.path), evaluation.document["trips"]), evaluation.document["trips_at"]]
    for place in map(Path, places):
        if (place / "summary.json").is_file():
            return Path(os.path.normpath(place))
    tried = " or ".join(dict.fromkeys(os.path.normpath(place) for place in places))
    raise FileFormatError(
        f"the trips of {evaluation.path} are not at {tried}; keep both where they were to each other, or evaluate again"
    )


def over_runs(runs: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Every metric of an arm: mean, standard deviation (n - 1) over its runs, and each run's value.

    The interval over trips is that of the one run; None where there are several, or a run has no value.
    """
    found = {}
    for name, first in runs[0].document["metrics"].items():
        values = {run.name: run.document["metrics"].get(name, {}).get("value") for run in runs}
        known = [value for value in values.values() if value is not None]
        is_single = len(runs) == 1
        found[name] = {
            "value": float(np.mean(known)) if len(known) == len(runs) else None,
            "sd_over_runs": float(np.std(known, ddof=1)) if len(known) == len(runs) > 1 else None,
            "low": first["low"] if is_single else None,
            "high": first["high"] if is_single else None,
            "n": first["n"],
            "runs": values,
        }
    return found


def floors_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The floors of the first evaluation that has some: all are of the same split."""
    return next((dict(found) for e in evaluations if (found := e.document["floors"])), {})
