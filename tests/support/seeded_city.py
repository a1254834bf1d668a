"""A city with two arms of runs over seeds, and a rule, evaluated: what reports and pipelines speak of arms about."""

from __future__ import annotations

import json
from pathlib import Path

from shared.store import Store
from support.generated_trips import write_generated
from support.report_city import PAIRS, call
from support.trained_runs import write_run

ARMS = {"distilled": ("h:1", 0.1), "vanilla": ("none", 0.4)}
"""Teacher, and the share of trips that are cut short."""


def add_seeds(city: Path, root: Path, seeds: int = 2) -> str:
    """Evaluations of every arm and seed, and of shortest paths, on a city's store; their paths between commas."""
    store, evaluations = Store(city / "store"), []
    for name, (teacher, spoiled) in ARMS.items():
        for seed in range(1, seeds + 1):
            model = f"{name}-s{seed}"
            weights = write_run(root / name / f"seed{seed}", store, seed, teacher)
            write_generated(root / "trips" / model, store, PAIRS, seed=seed, spoiled=spoiled)
            given = ("--data", store.path, "--trips", root / "trips" / model, "--weights", weights)
            assert call("evaluate", *given, "--out", root / model, f"name={model}", "bootstrap.draws=100") == 0
            evaluations.append(str(root / model))
    write_generated(root / "trips" / "rule", store, PAIRS, seed=7, spoiled=0.0)
    summary = root / "trips" / "rule" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"method": "shortest_path"}))
    rule = ("--data", store.path, "--trips", root / "trips" / "rule")
    assert call("evaluate", *rule, "--out", root / "rule", "name=shortest-path", "bootstrap.draws=100") == 0
    return ",".join([*evaluations, str(root / "rule")])
