"""A lattice of streets as GeoJSON, and walks on it as rows: what `convert` reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from student_trainer.data.geometry import haversine_m

NODES = {n: (-8.61 + 0.002 * (n % 3), 41.15 + 0.0015 * (n // 3)) for n in range(9)}
"""Longitude and latitude of a lattice of 3 by 3."""
LINKS = [(n, n + 1) for n in range(9) if n % 3 < 2] + [(n, n + 3) for n in range(6)]
WAYS = [way for a, b in LINKS for way in ((a, b), (b, a))]


def metres(a: int, b: int) -> float:
    return float(haversine_m(NODES[a][1], NODES[a][0], NODES[b][1], NODES[b][0]))


def feature(a: int, b: int, **more: Any) -> dict[str, Any]:
    """A road as osmnx writes its edges."""
    properties = {"u": a, "v": b, "key": 0, "osmid": [7, 8], "highway": ["primary", "trunk"], "oneway": False, **more}
    line = {"type": "LineString", "coordinates": [list(NODES[a]), list(NODES[b])]}
    return {"type": "Feature", "properties": properties, "geometry": line}


def write_network(path: Path, features: Sequence[dict[str, Any]] | None = None) -> Path:
    found = [feature(*way) for way in WAYS] if features is None else features
    path.write_text(json.dumps({"type": "FeatureCollection", "features": found}))
    return path


def walk(random: np.random.Generator, steps: int) -> list[str]:
    """Names of the roads of a walk on the lattice."""
    here, found = int(random.integers(9)), []
    for _ in range(steps):
        following = [b for a, b in WAYS if a == here]
        there = following[int(random.integers(len(following)))]
        found.append(f"{here}-{there}")
        here = there
    return found


def write_trips(path: Path, walks: Sequence[Sequence[str]], start: int = 1_577_836_800) -> Path:
    rows = [
        (f"t{trip}", f"{road}-0", start + 3600 * trip + (9 + trip) * step)
        for trip, roads in enumerate(walks)
        for step, road in enumerate(roads)
    ]
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([("trip", "road", "time"), *rows])
    return path
