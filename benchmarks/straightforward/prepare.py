"""Preparing trips as it is commonly done: row after row, every feature of every step computed once, a file a trip.

The features are those of `collate`; what is here is the reading of a row and the writing of its file.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import BenchmarkError
from benchmarks.straightforward import collate
from benchmarks.straightforward.collate import Features, Matrices
from shared.store import Trips
from student_trainer.data.batch import Batch
from student_trainer.data.network import RoadNetwork

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def prepare(network: RoadNetwork, path: Path, out: Path, matrices: Matrices) -> list[Features]:
    """Writes a file for each trip of a CSV file, with every feature but the candidates' tokens; returns the features.

    Args:
        network: the road network.
        path: `train.csv` or another split; its trips must be usable.
        out: directory; made here.
        matrices: how the pairwise matrices of a trip are made.
    """
    out.mkdir()
    written = []
    with open(path, newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            roads = [int(text) for text in row["rid_list"].split(",")]
            times = [_seconds(text) for text in row["time_list"].split(",")]
            features = trip_features(network, roads, times, matrices)
            torch.save(
                vars(features) | {"candidates": [vars(step) for step in features.candidates]}, out / f"{number}.pt"
            )
            written.append(features)
    return written


def trip_features(network: RoadNetwork, roads: list[int], times: list[int], matrices: Matrices) -> Features:
    """Every feature of a trip."""
    offsets = np.array([0, len(roads)])
    trip = Trips(np.array(roads, np.int32), np.array(times), offsets, np.zeros(1, np.int64))
    return collate._trip_features(network, trip, 0, matrices, top_k=0)


def check_equal(features: list[Features], batch: Batch) -> None:
    """Raises `BenchmarkError` unless a batch has these features: integers exactly, the rest within float32's rounding.

    Of the pairs of steps those count that a trip encoder reads: a step and itself or one before it.
    """
    steps = [step for trip in features for step in trip.candidates]
    exact: dict[str, list[int]] = {
        "destination": [trip.destination for trip in features],
        "length": [len(trip.road) for trip in features],
        "candidate_length": [len(step.road) for step in steps],
        "candidate_road": [road for step in steps for road in step.road],
        "label": [step.label for step in steps],
        "seconds": [seconds for trip in features for seconds in trip.seconds],
    }
    for name, expected in exact.items():
        if getattr(batch, name).tolist() != expected:
            raise BenchmarkError(f"{name} differs from what the formulas give")
    close = {
        "candidate_distance": [metres for step in steps for metres in step.distance],
        "candidate_angle": [angle for step in steps for angle in step.angle],
    }
    for name, numbers in close.items():
        _check_close(name, getattr(batch, name).numpy(), np.array(numbers))
    for row, trip in enumerate(features):
        n = len(trip.road)
        _check_close("temporal", batch.temporal[row, :n].numpy(), np.array(trip.temporal))
        for name, matrix in (("distance", trip.distance), ("interval", trip.interval)):
            _check_close(name, np.tril(getattr(batch, name)[row, :n, :n].numpy()), np.tril(matrix))


def _check_close(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    most = collate.TOLERANCE[name]
    if actual.shape != expected.shape or (worst := np.abs(actual - expected).max(initial=0)) > most:
        raise BenchmarkError(f"{name} differs by {worst:.2g} from what the formulas give, more than {most:.2g}")


def _seconds(text: str) -> int:
    return int(datetime.datetime.strptime(text, TIME_FORMAT).replace(tzinfo=datetime.UTC).timestamp())
