"""`student-trainer evaluate`: generated trips, and a model's next-road predictions, against real trips.

OUT/metrics.json      every metric with its interval, histograms, the reliability curve
OUT/pairs.parquet     what was measured of each pair
OUT/next_road.parquet what was measured of each trip of the split, with weights
OUT/config.yaml       settings
OUT/predictions/      next-road predictions of the weights, unless `predictions` names another place

Of trips that `sample` wrote: metrics.json, without pairs, and the settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from shared import claims, config, files, provenance
from shared.errors import DataError, FileFormatError
from shared.sinks import check_wandb
from shared.store import SplitName, Store, Trips
from student_trainer.data import generated
from student_trainer.data.generated import Generated
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import DOCUMENT, is_sampled
from student_trainer.evaluate import (
    floors,
    metrics,
    next_road,
    predictions,
    publish,
    replaced,
    sampled,
    training,
    trip_metrics,
)
from student_trainer.evaluate.bootstrap import Bootstrap
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.evaluate.evaluation import FORMAT, FORMAT_OF_SAMPLED, NEXT_ROAD
from student_trainer.evaluate.floors import Floor
from student_trainer.evaluate.measures import measure_trips, shared_cell_pairs
from student_trainer.evaluate.metrics import Histogram, Metric
from student_trainer.evaluate.next_road import Positions
from student_trainer.evaluate.trip_metrics import Pairs
from student_trainer.runs.layout import EVALUATION

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
"""What `generate` says of its trips."""


def run(settings: EvaluateConfig) -> int:
    """Measures, writes, prints a table on stderr and the values as JSON on stdout."""
    before = replaced.held(settings.out)
    document = evaluate(settings)
    if before is not None:
        replaced.tell(settings.out, before, document)
    print("\n".join(filter(None, (table(document), document.get("left_out")))), file=sys.stderr)
    print(json.dumps({"out": str(settings.out), **metrics.flat(document)}))
    return 0


def evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Writes an evaluation and returns its `metrics.json`.

    Raises:
        FileFormatError: the trips or the weights cannot be read.
        CompatibilityError: they are of another store.
        DataError: the split is empty.
        ConfigError: another job writes to OUT, or Weights & Biases cannot be used as asked.
    """
    check_wandb(settings.log.wandb)
    _check_trips(settings.trips)
    with claims.directory(settings.out):
        claims.check(settings.out, "an evaluation", claims.of("evaluate", predictions.FOLDER, NEXT_ROAD))
        return _evaluate(settings)


def _evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    store = Store(settings.data)
    network = RoadNetwork.load(store)
    if is_sampled(settings.trips):
        return _judge_sampled(settings, store, network)
    found = generated.read(settings.trips, store)
    reason, whole = why_durations_are_left_out(store, found.split), store.trips(found.split, settings.cache)
    log.info("%d pairs of %s, %d arrived", len(found.pair), found.split, int(found.arrived.sum()))
    measured, histograms, pairs = _measure_trips(network, whole, whole.take(found.source_trip), found, settings)
    weights = None if settings.weights is None else _weights(settings.weights)
    known = training.of_student(weights, found.summary)
    curve, rules, next_roads = None, dict[str, Floor](), None
    if weights is not None:
        positions = predictions.of_weights(settings, weights["sha256"], store, found.split, whole)
        boot = Bootstrap(settings.bootstrap, len(whole))
        more, curve = metrics.next_road_metrics(positions, len(whole), settings.bins, boot)
        measured += more
        next_roads = _next_road_table(positions, len(whole))
        rules = floors.measure(network, store.trips("train", settings.cache), whole, positions)
    shown = [metric for metric in measured if not (reason and metrics.is_of_durations(metric.name))]
    document = {
        "format": FORMAT,
        "name": settings.name or str(found.summary["name"]),
        "store": store.fingerprint,
        "trips": os.path.relpath(os.path.realpath(settings.trips), os.path.realpath(settings.out)),
        "trips_at": os.path.realpath(settings.trips),
        "generated": found.summary,
        "weights": weights,
        "training": None if known is None else known.as_dict(),
        "settings": settings.model_dump(mode="json"),
        "code_version": code_version(),
        "environment": provenance.environment(),
        "metrics": {metric.name: metric.as_dict() for metric in shown},
        "histograms": {h.name: h.as_dict() for h in histograms if not (reason and metrics.is_of_durations(h.name))},
        "reliability": curve,
        "floors": {name: dataclasses.asdict(floor) for name, floor in rules.items()},
        "left_out": reason,
    }
    _write(settings, document, pairs, next_roads)
    publish.publish(settings, document)
    return document


def _judge_sampled(settings: EvaluateConfig, store: Store, network: RoadNetwork) -> dict[str, Any]:
    judged = sampled.judge(settings, store, network)
    document = {
        "format": FORMAT_OF_SAMPLED,
        "name": settings.name or settings.trips.resolve().name,
        "store": store.fingerprint,
        "split": sampled.SPLIT,
        "trips_at": os.path.realpath(settings.trips),
        "sampled": judged.document,
        "settings": settings.model_dump(mode="json"),
        "code_version": code_version(),
        "environment": provenance.environment(),
        "metrics": {metric.name: metric.as_dict() for metric in judged.measured},
        "histograms": {histogram.name: histogram.as_dict() for histogram in judged.histograms},
        "floors": {},
    }
    config.save(settings, "evaluate", settings.out / "config.yaml")
    files.write_json(settings.out / EVALUATION, document)
    for name in ("pairs.parquet", NEXT_ROAD):  # of what was evaluated here before
        files.remove(settings.out / name)
    publish.publish(settings, document)
    return document


def why_durations_are_left_out(store: Store, split: SplitName) -> str:
    """A sentence, if `prepare` has found that the durations of a split are placeholders; otherwise nothing."""
    if "durations" not in store.manifest["splits"][split].get("placeholders", ()):
        return ""
    return (
        f"Metrics of time are left out: the durations of {split} are placeholders, as `prepare` has found, and a "
        "difference of them would mean nothing, however small its p-value."
    )


def code_version() -> str:
    """Digest of the source that decides what an evaluation holds."""
    return provenance.source_digest(__name__)


def _weights(path: Path) -> dict[str, str]:
    return {"file": str(path), "sha256": files.file_digest(path)}


def _check_trips(path: Path) -> None:
    """Raises `FileFormatError` unless a directory may hold trips."""
    makers = "`student-trainer generate` or `student-trainer sample`"
    if path.is_file():
        raise FileFormatError(f"{path} is a file; --trips takes the directory that {makers} wrote, as {path.parent}")
    if not any((path / name).exists() for name in (SUMMARY, DOCUMENT)):
        what = f"holds no trips (no {SUMMARY}, no {DOCUMENT})" if path.exists() else "does not exist"
        raise FileFormatError(f"{path} {what}; make them with {makers}")


def _measure_trips(
    network: RoadNetwork, whole: Trips, real: Trips, found: Generated, settings: EvaluateConfig
) -> tuple[list[Metric], list[Histogram], pl.DataFrame]:
    bootstrap = Bootstrap(settings.bootstrap, len(found.pair))
    pairs = Pairs(network, real, found.trips, found.destination)
    longer = whole.take(np.flatnonzero(whole.lengths >= 2))
    if len(longer) == 0:
        raise DataError(f"the {found.split} split has no trip of two or more roads")
    real_ends, ends = pairs.cells.ends(longer), pairs.cells.ends(found.trips)
    moved = np.flatnonzero(found.trips.lengths >= 2)
    left, right = shared_cell_pairs(real_ends, ends[moved])
    in_cells = Pairs(network, longer.take(left), found.trips.take(moved[right]), found.destination[moved[right]])
    everything = measure_trips(network, longer)
    global_, histograms = metrics.global_metrics(pairs.real_measures, everything, pairs.generated_measures, bootstrap)
    measured = [
        *metrics.pair_metrics(pairs, in_cells if len(left) else None, bootstrap),
        metrics.od_pair_match_metric(real_ends, ends[moved]),
        metrics.median_duration_error(pairs, bootstrap),
        *global_,
    ]
    return metrics.by_group(measured), histograms, _pairs_table(found, pairs)


def _pairs_table(found: Generated, pairs: Pairs) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "pair": found.pair,
        "source_trip": found.source_trip,
        "origin": found.origin,
        "destination": found.destination,
        "status": found.status,
    }
    for name in ("distance_km", "radius_km", "duration_s"):
        columns |= {
            f"real_{name}": getattr(pairs.real_measures, name),
            name: getattr(pairs.generated_measures, name),
        }
    return pl.DataFrame(columns | trip_metrics.measure(pairs)).sort("pair")


def _next_road_table(positions: Positions, n: int) -> pl.DataFrame:
    """What the steps of each trip of the split sum up to."""
    columns: dict[str, Any] = {"trip": np.arange(n)}
    for metric in next_road.METRICS:
        sums = next_road.per_trip(positions, metric.measure(positions), n)
        columns[metric.column], columns[f"{metric.column}_count"] = sums
    return pl.DataFrame(columns)


def _write(
    settings: EvaluateConfig, document: dict[str, Any], pairs: pl.DataFrame, next_roads: pl.DataFrame | None
) -> None:
    with contextlib.ExitStack() as stack:  # all is on disk before any of it gets its name, the first of these last
        metrics_path, pairs_path, config_path = (
            stack.enter_context(files.atomic_path(settings.out / name))
            for name in (EVALUATION, "pairs.parquet", "config.yaml")
        )
        if next_roads is not None:
            next_roads.write_parquet(stack.enter_context(files.atomic_path(settings.out / NEXT_ROAD)))
        pairs.write_parquet(pairs_path)
        config.save(settings, "evaluate", config_path)
        files.write_json(metrics_path, document)
    if next_roads is None:
        files.remove(settings.out / NEXT_ROAD)


def table(document: dict[str, Any]) -> str:
    """The metrics for people."""
    rows: list[Sequence[str]] = []
    for name, metric in document["metrics"].items():
        interval = "" if metric["low"] is None else f"{metric['low']:.4g} .. {metric['high']:.4g}"
        value = "-" if metric["value"] is None else f"{metric['value']:.4g}"
        rows.append((metric["group"], name, value, metric["unit"], interval, f"{metric['n']:,}"))
    for floor in document["floors"].values():
        rows += [
            ("floors", f"{metric} of {floor['label']}", f"{value:.4g}", "share", "", "")
            for metric, value in floor["values"].items()
            if value is not None
        ]
    header = (
        "",
        "metric",
        "value",
        "unit",
        f"{100 * document['settings']['bootstrap']['confidence']:g} % interval",
        "n",
    )
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines, group = [], ""
    for row in [header, *rows]:
        shown = [row[0] if row[0] != group else "", *row[1:]]
        group = row[0]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(shown, widths, strict=True)).rstrip())
    return "\n".join(lines)
