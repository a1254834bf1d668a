"""Trips that were sampled from a teacher, judged as a whole: none of them has a real trip of its own.

As many real trips are drawn as there are sampled ones, or the other way round, so that distributions of equal numbers
are compared, and chance counts alike on both sides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from shared.errors import ConfigError, DataError
from shared.store import SplitName, Store, Trips
from shared.subset import draw
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import load_sampled, read_document
from student_trainer.evaluate import metrics
from student_trainer.evaluate.bootstrap import Bootstrap, Estimate
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.evaluate.measures import Cells, measure_trips
from student_trainer.evaluate.metrics import NAN, Histogram, Metric

SPLIT: SplitName = "test"
"""The real trips: those that neither teacher nor student have seen."""


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What was measured.

    Attributes:
        document: `sampled.json`.
        measured, histograms: see `metrics`.
    """

    document: dict[str, Any]
    measured: list[Metric]
    histograms: list[Histogram]


def judge(settings: EvaluateConfig, store: Store, network: RoadNetwork) -> Judged:
    """Measures the trips of a directory that `sample` wrote.

    Raises:
        ConfigError: weights are given, too.
        FileFormatError, CompatibilityError: the trips cannot be read, or are of another store.
        DataError: there are no real trips.
    """
    if settings.weights is not None:
        raise ConfigError("weights: sampled trips are a teacher's; evaluate a student's predictions with its own trips")
    sampled, document = load_sampled(settings.trips, store), read_document(settings.trips)
    real = store.trips(SPLIT, settings.cache)
    real = real.take(np.flatnonzero(real.lengths >= 2))
    if len(real) == 0:
        raise DataError(f"the {SPLIT} split has no trip of two or more roads")
    count = min(len(real), len(sampled))
    some, made = (_draw(trips, count, settings.bootstrap.seed) for trips in (real, sampled))
    bootstrap = Bootstrap(settings.bootstrap, count)
    own, whole, drawn = (measure_trips(network, trips) for trips in (some, real, made))
    measured, histograms = metrics.global_metrics(own, whole, drawn, bootstrap, against="of real trips")
    cells = Cells.over(network)
    measured.append(metrics.od_pair_match_metric(cells.ends(real), cells.ends(made)))
    measured += _coverage(network, some, made)
    return Judged(document, metrics.by_group(measured), histograms)


def _draw(trips: Trips, count: int, seed: int) -> Trips:
    return trips.take(draw(len(trips), count, seed))


def _coverage(network: RoadNetwork, real: Trips, sampled: Trips) -> list[Metric]:
    """Which roads trips enter; no intervals: a resample of trips enters fewer roads."""
    used, entered = (np.isin(np.arange(network.num_roads), trips.roads) for trips in (real, sampled))
    shares = [
        ("roads_covered", "Roads covered", "Share of all roads that sampled trips enter.", entered.mean()),
        ("real_roads_covered", "Roads covered by real trips", "The same of as many real trips.", used.mean()),
        (
            "roads_in_use_covered", "Roads in use covered",
            "Share of the roads that as many real trips enter which sampled trips enter, too.", entered[used].mean(),
        ),
    ]  # fmt: skip
    found = [
        Metric(name, "global", label, "share", "higher", words, Estimate(float(share), NAN, NAN, len(sampled)))
        for name, label, words, share in shares
    ]
    roads = [("roads_per_trip", "sampled", sampled), ("real_roads_per_trip", "real", real)]
    return found + [
        Metric(
            name, "global", f"Roads of {whose} trips", "roads", "higher", f"Mean number of roads of {whose} trips.",
            Estimate(float(trips.lengths.mean()), NAN, NAN, len(trips)),
        )
        for name, whose, trips in roads
    ]  # fmt: skip
