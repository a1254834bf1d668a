"""What the map holds: the network as whole numbers, and some pairs of trips."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from shared.arrays import Int64
from shared.store import Store, Trips
from student_trainer.data.geometry import EARTH_RADIUS_M
from student_trainer.evaluate import trip_metrics
from student_trainer.evaluate.trip_metrics import PairMetric
from student_trainer.report.content import Content

STEPS = 2**16 - 1
MEASURES = ("distance_km", "duration_s")
"""Columns of `pairs.parquet` that are shown beside a trip, and are no metrics."""


def network(store: Store) -> dict[str, Any]:
    """The roads' vertices in metres from a corner, as uint16 of a common unit: equirectangular at the middle latitude.

    Returns:
        unit: metres of a step; latitude, longitude of the corner, degrees; metres a degree in both directions;
        vertices: uint16 [V, 2] eastward and northward, and counts: uint16 [N] vertices a road, base64, little-endian.
    """
    vertices, offsets = store.network("vertices"), store.network("vertex_offsets")
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    degree = np.pi * EARTH_RADIUS_M / 180
    scale = np.array([degree, degree * np.cos(np.radians((low[0] + high[0]) / 2))])
    metres = (vertices - low) * scale
    unit = max(float(metres.max()) / STEPS, 0.01)
    steps = np.round(metres[:, ::-1] / unit).astype("<u2")
    return {
        "unit": unit,
        "corner": low.tolist(),
        "metres_per_degree": scale.tolist(),
        "vertices": base64.b64encode(steps.tobytes()).decode(),
        "counts": base64.b64encode(np.diff(offsets).astype("<u2").tobytes()).decode(),
    }


def metrics() -> list[PairMetric]:
    """What the map shows beside trips, or orders them by."""
    return [metric for metric in trip_metrics.METRICS if metric.beside_trips or metric.order]


def columns() -> list[str]:
    """Of `pairs.parquet`: what stands beside a trip."""
    return [*(metric.column for metric in metrics()), *MEASURES]


def choose(content: Content, count: int, seed: int) -> Int64:
    """Rows of the pairs that are shown, ascending: a quarter where a model did not arrive, a quarter where one is
    farthest from the real trip (Hausdorff), the rest drawn."""
    total = len(content.real)
    random = np.random.default_rng(seed)
    failed = np.flatnonzero(np.any([~found.arrived for found in content.generated], axis=0))
    distance = np.max([e.pairs["hausdorff_km"].to_numpy() for e in content.evaluations], axis=0)
    order = [random.permutation(failed)[: count // 4], np.argsort(-distance, kind="stable")[: count // 4]]
    picked = np.unique(np.concatenate(order))
    others = random.permutation(np.setdiff1d(np.arange(total), picked))[: max(count - len(picked), 0)]
    return np.sort(np.concatenate([picked, others])).astype(np.int64)


def pairs(content: Content, rows: Int64) -> list[dict[str, Any]]:
    """The chosen pairs: real and generated trips with seconds since departure, and what was measured."""
    found = []
    evaluations, first = content.evaluations, content.generated[0]
    for row in rows.tolist():
        models = {}
        for evaluation, made in zip(evaluations, content.generated, strict=True):
            values = {name: evaluation.pairs[name][row] for name in columns()}
            models[evaluation.name] = {
                **_trip(made.trips, row), "status": str(made.status[row]), "arrived": bool(made.arrived[row]),
                "metrics": values,
            }  # fmt: skip
        distance = evaluations[0].pairs["real_distance_km"][row]
        found.append(
            {
                "pair": int(first.pair[row]),
                "origin": int(first.origin[row]),
                "destination": int(first.destination[row]),
                "departure": int(content.real.times[content.real.offsets[row]]),
                "real": _trip(content.real, row) | {"distance_km": distance},
                "models": models,
            }
        )
    return found


def _trip(trips: Trips, row: int) -> dict[str, Any]:
    span = slice(int(trips.offsets[row]), int(trips.offsets[row + 1]))
    times = trips.times[span]
    return {"roads": trips.roads[span].tolist(), "times": (times - times[0]).tolist()}
