"""`student-trainer compare`: evaluations against a baseline, pair by pair on the same OD pairs.

OUT/comparison.json   of each metric and model: difference, interval, p-values, effect size, verdict
OUT/config.yaml       settings
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shared import claims, config, files, provenance
from shared.errors import CompatibilityError, ConfigError
from student_trainer.data import tables
from student_trainer.evaluate import next_road, paired, trip_metrics
from student_trainer.evaluate import run as evaluation
from student_trainer.evaluate.bootstrap import Bootstrap
from student_trainer.evaluate.config import CompareConfig
from student_trainer.evaluate.generated import read_document, read_parquet
from student_trainer.evaluate.paired import PairedTest

FORMAT = "hoser-comparison/1"

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


def run(settings: CompareConfig) -> int:
    """Compares, writes, prints the verdicts on stderr and where the file is as JSON on stdout."""
    document = compare(settings)
    for metric in document["metrics"].values():
        for found in metric["models"].values():
            print(found["verdict"], file=sys.stderr)
    print(json.dumps({"out": str(settings.out), "baseline": document["baseline"], "models": document["models"]}))
    return 0


def compare(settings: CompareConfig) -> dict[str, Any]:
    """Writes a comparison and returns it.

    Raises:
        FileFormatError: an evaluation cannot be read.
        CompatibilityError: they are of other stores or other OD pairs.
        ConfigError: two have the same name, or another job writes to OUT.
    """
    with claims.directory(settings.out):
        return _compare(settings)


def _compare(settings: CompareConfig) -> dict[str, Any]:
    evaluations = [read(path) for path in settings.evaluations]
    baseline, *others = evaluations
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluations of the same name: {', '.join(names)}; give each a `name` when it is made")
    for other in others:
        check_same(baseline, other)
    metrics: dict[str, Any] = {}
    for other in others:
        found = list(_differences(baseline, other, settings))
        adjusted = paired.holm([difference.test.p for difference in found])
        for difference, p_holm in zip(found, adjusted, strict=True):
            words = baseline.document["metrics"][difference.metric]
            entry = metrics.setdefault(
                difference.metric, {key: words[key] for key in ("label", "unit", "better", "group")} | {"models": {}}
            )
            entry["models"][other.name] = _described(difference, p_holm, words, baseline.name, other.name, settings)
    document = {
        "format": FORMAT,
        "store": baseline.document["store"],
        "baseline": baseline.name,
        "models": names,
        "evaluations": [str(path) for path in settings.evaluations],
        "pairs": len(baseline.pairs),
        "notes": [
            "Intervals and tests cover the chance in the sample of trips. They do not cover the chance in training: "
            "one run a model says nothing of other seeds.",
            "p-values are corrected by Holm's method over the metrics of each model.",
        ],
        "settings": settings.model_dump(mode="json"),
        "code_version": code_version(),
        "environment": provenance.environment(),
        "metrics": metrics,
    }
    config.save(settings, "compare", settings.out / "config.yaml")
    files.write_json(settings.out / "comparison.json", document)
    return document


def code_version() -> str:
    """Digest of the source that decides what a comparison holds."""
    return provenance.source_digest(__name__)


def read(path: Path) -> Evaluation:
    """An evaluation; raises `FileFormatError`."""
    document = read_document(path / "metrics.json", evaluation.FORMAT, "evaluate")
    columns = {**KEYS, **dict.fromkeys(SHOWN, pl.Float64)}
    columns |= {metric.column: pl.Boolean if metric.is_flag else pl.Float64 for metric in trip_metrics.METRICS}
    with tables.Reader() as reader:
        pairs = read_parquet(path / "pairs.parquet", columns, reader.read)
        if document["reliability"] is None:
            return Evaluation(path, document, pairs, None)
        sums = {name: pl.Float64 for metric in next_road.METRICS for name in (metric.column, f"{metric.column}_count")}
        steps = read_parquet(path / "next_road.parquet", {"trip": pl.Int64, **sums}, reader.read)
    return Evaluation(path, document, pairs, steps)


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


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one metric: the other minus the baseline.

    Attributes:
        low, high: interval of the difference.
        n: pairs, or trips of the split.
    """

    metric: str
    baseline: float
    value: float
    low: float
    high: float
    n: int
    test: PairedTest


def _differences(baseline: Evaluation, other: Evaluation, settings: CompareConfig) -> Iterator[Difference]:
    bootstrap = Bootstrap(settings.bootstrap, len(baseline.pairs))
    for metric in trip_metrics.METRICS:
        if metric.is_compared:
            before, after = (e.pairs[metric.column].to_numpy() for e in (baseline, other))
            test = paired.mcnemar(before, after) if metric.is_flag else paired.wilcoxon(after - before)
            yield _of_values(metric.name, before.astype(float), after.astype(float), test, bootstrap)
    if baseline.next_road is None or other.next_road is None:
        return
    bootstrap = Bootstrap(settings.bootstrap, len(baseline.next_road))
    for step in next_road.METRICS:
        if step.is_compared:
            yield _of_sums(step.name, baseline.next_road, other.next_road, step.column, bootstrap)


def _of_values(
    metric: str, before: npt.NDArray, after: npt.NDArray, test: PairedTest, bootstrap: Bootstrap
) -> Difference:
    estimate = bootstrap.mean(after - before)
    return Difference(metric, float(before.mean()), float(after.mean()), estimate.low, estimate.high, estimate.n, test)


def _of_sums(metric: str, before: pl.DataFrame, after: pl.DataFrame, column: str, bootstrap: Bootstrap) -> Difference:
    """Means over steps, resampled by trip; the test compares the trips' own means."""
    sums = np.stack(
        [frame[name].to_numpy() for frame in (before, after) for name in (column, f"{column}_count")], axis=1
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        trip_means = sums[:, [0, 2]] / sums[:, [1, 3]]

    def difference(totals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(totals[..., 2] / totals[..., 3] - totals[..., 0] / totals[..., 1])

    estimate = bootstrap.statistic(sums, difference, len(sums))
    totals = sums.sum(axis=0)
    values = float(totals[0] / totals[1]), float(totals[2] / totals[3])
    test = paired.wilcoxon(trip_means[:, 1] - trip_means[:, 0])
    return Difference(
        metric, *values, estimate.low, estimate.high, int(np.isfinite(trip_means).all(axis=1).sum()), test
    )


def _described(
    found: Difference, p_holm: float, words: dict[str, Any], baseline: str, other: str, settings: CompareConfig
) -> dict[str, Any]:
    difference = found.value - found.baseline
    agrees = (found.low > 0) == (found.high > 0) and found.low != 0 != found.high
    significant = bool(p_holm <= settings.significance and agrees)
    return {
        "baseline_value": _plain(found.baseline),
        "value": _plain(found.value),
        "difference": _plain(difference),
        "low": _plain(found.low),
        "high": _plain(found.high),
        "p": found.test.p,
        "p_holm": p_holm,
        "test": found.test.name,
        "effect_size": found.test.effect_size,
        "effect_size_kind": found.test.kind,
        "n": found.n,
        "significant": significant,
        "verdict": _verdict(found, difference, significant, p_holm, words, (baseline, other), settings),
    }


def _verdict(
    found: Difference,
    difference: float,
    significant: bool,
    p_holm: float,
    words: dict[str, Any],
    names: Sequence[str],
    settings: CompareConfig,
) -> str:
    baseline, other = names
    unit = "" if words["unit"] == "share" else f" {words['unit']}"
    interval = (
        f"{difference:+.4g}{unit}, {settings.bootstrap.confidence:.0%} interval {found.low:+.4g} to {found.high:+.4g}"
    )
    facts = f"({interval}, p = {p_holm:.2g} after Holm, n = {found.n:,})"
    if not significant:
        return f"{words['label']}: no real difference between {other} and {baseline} is shown {facts}."
    is_better = (difference > 0) == (words["better"] == "higher")
    return f"{words['label']}: {other} is {'better' if is_better else 'worse'} than {baseline} on these trips {facts}."


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
