"""Finished runs: gathered from pools, kept as lines, and compared over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import REPOSITORY
from benchmarks.regimes.arms import USUAL_RATE
from shared import files
from shared.arrays import Float64
from student_trainer.evaluate import trip_metrics

RESULTS = REPOSITORY / "benchmarks" / "results"
RUNS = RESULTS / "regimes.jsonl"

Run = dict[str, Any]
Key = tuple[str, int, str, float, int]

NEXT_ROAD = {
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL", 1, 4),
    "ece": ("ECE", 1, 4),
    "time_error": ("time", 1, 4),
}
TRIPS = {
    "arrival_rate": ("arrived %", 100, 1),
    "same_route_rate": ("same route %", 100, 1),
    "hausdorff_km": ("Hausdorff km", 1, 3),
    "dtw_km": ("DTW km", 1, 2),
    "edr": ("EDR", 1, 3),
    "trip_distance_error_km": ("distance km", 1, 3),
    "trip_duration_error_s": ("duration s", 1, 1),
}


HIGHER_IS_BETTER = {"accuracy"} | {metric.name for metric in trip_metrics.METRICS if metric.better == "higher"}
"""Metrics; of the others less is."""


def key_of(run: Run) -> Key:
    """Teacher, labelled trips, arm, learning rate, seed."""
    return run["teacher"], run["trips"], run["arm"], rate_of(run), run["seed"]


def rate_of(run: Run) -> float:
    """Its learning rate, which is kept where it is not the usual one."""
    return float(run.get("rate", USUAL_RATE))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are kept."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gather(root: Path) -> int:
    """Adds a pool's finished runs, with the metrics of their trips where these were judged; returns how many.

    Raises:
        ValueError: runs of one arm differ in their steps; nothing is added.
    """
    known = {key_of(run): run for run in read(RUNS)}
    found = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    for run in found:
        out = root / run["teacher"] / str(run["trips"]) / f"{run['arm']}-{run['seed']}"
        metrics = out / "evaluation" / "metrics.json"
        if metrics.exists():
            measured = json.loads(metrics.read_text())["metrics"]
            run["whole"] = {name: measured[name]["value"] for name in TRIPS}
        bound = out / "headroom.json"
        if bound.exists():
            found_bound = json.loads(bound.read_text())
            ceiling = found_bound["arms"][found_bound["ceiling"]]
            run["ceiling"] = {name: ceiling[name] for name in ("accuracy", "nll")}
        kept = {name: run[name] for name in ("teacher", "trips", "arm", "seed", "steps", "device", "test", "target")}
        kept |= {"rate": rate_of(run)} if rate_of(run) != USUAL_RATE else {}
        kept |= {"best_epoch": run["best"]["epoch"]} | {name: run[name] for name in ("whole", "ceiling") if name in run}
        known[key_of(run)] = kept
    steps: dict[Any, set[int]] = {}
    for (*arm, _), run in known.items():
        steps.setdefault(tuple(arm), set()).add(run["steps"])
    if unequal := {arm: of for arm, of in steps.items() if len(of) > 1}:
        raise ValueError(f"runs of one arm differ in their steps: {unequal}")
    lines = [json.dumps(known[key]) for key in sorted(known)]
    files.write_text(RUNS, "\n".join(lines) + "\n")
    return len(found)


def values(runs: Iterable[Run], part: str, name: str) -> dict[int, float]:
    """Of each seed that has them."""
    return {run["seed"]: run[part][name] for run in runs if part in run}


def paired(mine: Mapping[int, float], base: Mapping[int, float]) -> Float64:
    """Differences, mine minus base, of the seeds that both have: float64 [seeds]."""
    return np.array([mine[seed] - base[seed] for seed in sorted(mine.keys() & base.keys())])


def p_value(differences: Float64) -> float | None:
    """Of a t-test that their mean is 0; None where there are fewer than three, or all are the same."""
    if len(differences) < 3 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)
