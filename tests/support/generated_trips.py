"""Directories as `generate` writes them, made from real trips without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from shared.store import SplitName, Store


def write_generated(
    path: Path,
    store: Store,
    pairs: int,
    seed: int = 0,
    split: SplitName = "val",
    spoiled: float = 0.5,
    changes: dict[str, Any] | None = None,
) -> pl.DataFrame:
    """Trips of the first `pairs` real ones: a share of them cut short by some roads, the others slower by a tenth.

    Args:
        changes: columns that replace those of the table.
    """
    random, trips = np.random.default_rng(seed), store.trips(split)
    rows: list[dict[str, Any]] = []
    for trip in range(pairs):
        span = slice(int(trips.offsets[trip]), int(trips.offsets[trip + 1]))
        roads, times = trips.roads[span].tolist(), trips.times[span]
        kept = len(roads) if random.random() >= spoiled else int(random.integers(1, len(roads)))
        late = times[0] + ((times - times[0]) * 1.1).astype(np.int64)
        has_arrived = roads[kept - 1] == roads[-1]
        rows.append(
            {
                "pair": trip,
                "source_trip": trip,
                "source_row": int(trips.source_rows[trip]),
                "origin": roads[0],
                "destination": roads[-1],
                "departure": int(times[0]),
                "status": "arrived" if has_arrived else "dead_end",
                "roads": roads[:kept],
                "times": late[:kept].tolist(),
                "log_prob": -0.5 * kept,
                "steps": kept - 1,
                "expanded": kept,
            }
        )
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col("origin", "destination", "steps").cast(pl.Int32), pl.col("roads").cast(pl.List(pl.Int32))
    )
    frame = frame.with_columns(*(pl.Series(name, values) for name, values in (changes or {}).items()))
    path.mkdir(parents=True)
    frame.write_parquet(path / "trips.parquet")
    statuses = dict(frame["status"].value_counts().iter_rows())
    summary = {
        "format": "hoser-generated/1", "name": path.name, "store": store.fingerprint, "split": split, "method": "beam",
        "weights": None, "settings": {}, "code_version": "none", "pairs": pairs, "statuses": statuses, "seconds": 1.0,
        "trips_per_s": float(pairs), "search": {"forward_calls": 1, "forward_rows": 1, "expanded": 1},
        "environment": {},
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return frame
