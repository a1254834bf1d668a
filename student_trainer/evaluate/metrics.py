"""The metrics of an evaluation, each with its name, unit, interval and meaning.

Names are stable: they are keys of `metrics.json` and, after `evaluate/`, of TensorBoard and Weights & Biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import files
from shared.arrays import Float64
from student_trainer.evaluate import distributions, next_road, trip_metrics
from student_trainer.evaluate.bootstrap import Bootstrap, Estimate
from student_trainer.evaluate.distributions import Values, jensen_shannon_nats
from student_trainer.evaluate.measures import TripMeasures
from student_trainer.evaluate.next_road import Positions
from student_trainer.evaluate.trip_metrics import Better, Group, PairMetric, Pairs

NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number and what it means.

    Attributes:
        n: trips, pairs or positions that it was measured on.
        better: which direction is better.
    """

    name: str
    group: Group
    label: str
    unit: str
    better: Better
    description: str
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Everything but the name, as JSON: NaN as null."""
        values: dict[str, Any] = files.finite(dict(vars(self.estimate)))
        words = {key: getattr(self, key) for key in ("unit", "group", "better", "label", "description")}
        return values | words


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A distribution of real and generated values, as shares of each side, and the edges of the bins."""

    name: str
    label: str
    unit: str
    edges: Float64
    real: Float64
    generated: Float64

    def as_dict(self) -> dict[str, Any]:
        """As JSON. The last bin holds the last edge and all above it, so that there are as many bins as edges."""
        sides = {
            side: (c / max(c.sum(), 1)).tolist() for side, c in (("real", self.real), ("generated", self.generated))
        }
        return {"label": self.label, "unit": self.unit, "edges": self.edges.tolist(), **sides}


def pair_metrics(pairs: Pairs, in_cells: Pairs | None, bootstrap: Bootstrap) -> Iterator[Metric]:
    """Means of what is declared in `trip_metrics`, and their variants.

    Args:
        pairs: of each trip and its own real counterpart.
        in_cells: of trips that share OD cells, matched as upstream does; None if there are none.
    """
    for metric in trip_metrics.METRICS:
        values = metric.measure(pairs)
        mean = metric.description
        if not metric.is_flag:
            values = values.astype(np.float64)
            mean = f"Mean over all pairs, those that did not arrive included: {metric.description}."
        yield _of_pairs(metric, "", "", mean, bootstrap.mean(values.astype(np.float64)))
        if metric.of_arrived:
            yield _of_pairs(
                metric, "_arrived", ", arrived trips",
                "The same over trips that arrived: easier pairs, and others for each model.",
                bootstrap.mean(np.where(pairs.arrived, values, np.nan)),
            )  # fmt: skip
        if metric.of_cells:
            matched = np.zeros(0) if in_cells is None else metric.measure(in_cells)
            yield _of_pairs(
                metric, "_od_cells_upstream", ", shared OD cells",
                "As upstream has it: the k-th generated with the k-th real trip of the split between the same 0.001° "
                "cells, by the cells reached; trips that went elsewhere drop out.",
                Estimate(float(matched.mean()) if len(matched) else NAN, NAN, NAN, len(matched)),
            )  # fmt: skip


def _of_pairs(metric: PairMetric, suffix: str, words: str, description: str, estimate: Estimate) -> Metric:
    name, label = metric.name + suffix, metric.label + words
    return Metric(name, metric.group, label, metric.unit, metric.better, description, estimate)


def od_pair_match_metric(real_ends: npt.NDArray, generated_ends: npt.NDArray) -> Metric:
    """Upstream's rate, over distinct pairs of cells: the reached ends that occur among the real ones; no interval."""
    real, generated = np.unique(real_ends, axis=0), np.unique(generated_ends, axis=0)
    both = len(real) + len(generated) - len(np.unique(np.concatenate([real, generated]), axis=0))
    value = both / len(generated) if len(generated) else NAN
    return Metric(
        name="od_pair_match_rate_upstream",
        group="arrival",
        label="OD cell pairs that occur",
        unit="share",
        better="higher",
        description="Of the distinct pairs of 0.001° cells that generated trips begin and end in, the share that "
        "occurs among the split's real trips. Says nothing about the destination that was asked for.",
        estimate=Estimate(value, NAN, NAN, len(generated)),
    )


QUANTITIES = (
    ("distance", "Trip distance", "km", "distance_km"),
    ("radius", "Radius of gyration", "km", "radius_km"),
    ("radius_rms", "Radius of gyration (root mean square)", "km", "radius_rms_km"),
    ("segment_duration", "Time from road to road", "s", "segment_s"),
    ("trip_duration", "Trip duration", "s", "duration_s"),
)
"""Name, label, unit and field of `TripMeasures` of what has a distribution."""
DURATION_FIELDS = ("segment_s", "duration_s")
"""Those of them that are of time."""


def global_metrics(
    real: TripMeasures,
    whole: TripMeasures,
    generated: TripMeasures,
    bootstrap: Bootstrap,
    against: str = "of the same pairs' real trips",
) -> tuple[list[Metric], list[Histogram]]:
    """Divergences of distributions over all trips.

    Args:
        real: of the pairs' own real trips.
        whole: of all real trips of the split with two or more roads, which upstream compares with.
        generated: of all generated trips, those that did not arrive included.
        against: what `real` is, for people.
    """
    metrics, histograms = [], []
    for name, label, unit, field in QUANTITIES:
        sides = [_values(side, field) for side in (real, whole, generated)]
        edges = distributions.edges_of(sides[0].flat)
        own, made = sides[0].binned(edges), sides[2].binned(edges)
        nats, floor = bootstrap.divergence(own, made, jensen_shannon_nats)
        metrics.append(
            Metric(
                f"jsd_{name}_bits", "global", f"{label}, divergence", "bit", "lower",
                f"Jensen-Shannon divergence (0 to 1) between the distributions of {label.lower()} of generated trips "
                f"and {against}; 99 equal bins up to the largest real value and one above. "
                f"With so many of both, chance alone gives {floor / math.log(2):.3g}.",
                _scaled(nats, 1 / math.log(2)),
            )
        )  # fmt: skip
        edges_whole = distributions.edges_of(sides[1].flat)
        counts = [distributions.totals(side.binned(edges_whole)) for side in sides[1:]]
        metrics.append(
            Metric(
                f"jsd_{name}_nats_upstream", "global", f"{label}, divergence as upstream has it", "nat", "lower",
                "The same in nats (0 to 0.693) and against all real trips of the split, as upstream compares; no "
                "interval, for the two sides are not paired.",
                Estimate(float(jensen_shannon_nats(counts[0], counts[1])), NAN, NAN, len(sides[2].offsets) - 1),
            )
        )  # fmt: skip
        totals = distributions.totals(own), distributions.totals(made)
        histograms.append(Histogram(name, label, unit, edges, *totals))
    return metrics, histograms


def median_duration_error(pairs: Pairs, bootstrap: Bootstrap) -> Metric:
    """The median beside the mean, which few trips can decide."""
    duration = np.abs(pairs.generated_measures.duration_s - pairs.real_measures.duration_s)
    return Metric(
        "trip_duration_error_s_median", "time", "Trip duration, median error", "s", "lower",
        "Median absolute difference to the real trip's.", bootstrap.median(duration),
    )  # fmt: skip


def next_road_metrics(
    positions: Positions, n: int, bins: int, bootstrap: Bootstrap
) -> tuple[list[Metric], dict[str, Any]]:
    """Metrics of next-road predictions and their reliability curve; intervals resample whole trips.

    Args:
        n: trips of the split.
        bins: of the confidence.
    """
    metrics = []
    for metric in next_road.METRICS:
        sums, counts = next_road.per_trip(positions, metric.measure(positions), n)
        estimate = bootstrap.ratio(sums, counts, int(counts.sum()))
        words = metric.label, metric.unit, metric.better, metric.description
        metrics.append(Metric(metric.name, "next_road", *words, estimate))
    binned = next_road.binned_confidence(positions, bins, n)
    metrics.append(
        Metric(
            "next_road_ece", "next_road", "Next road, calibration error", "share", "lower",
            f"Expected calibration error: mean distance of accuracy and confidence, in {bins} bins of equal width.",
            bootstrap.statistic(binned, next_road.expected_calibration_error, len(positions.trip), is_distance=True),
        )
    )  # fmt: skip
    return metrics, next_road.reliability(binned.sum(axis=0))


def is_of_durations(name: str) -> bool:
    """Whether a metric or a histogram is of how long steps or trips take.

    Args:
        name: of either, as in `metrics.json`.
    """
    declared = [metric.name for metric in trip_metrics.METRICS if metric.of_durations]
    declared += [metric.name for metric in next_road.METRICS if metric.of_durations]
    timed = [quantity for quantity, _, _, field in QUANTITIES if field in DURATION_FIELDS]
    names = *declared, *(f"jsd_{quantity}_" for quantity in timed)
    return name in timed or name.startswith(names)


def by_group(metrics: Sequence[Metric]) -> list[Metric]:
    """Metrics of a group behind each other, groups and metrics in the order in which they first occur."""
    groups = list(dict.fromkeys(metric.group for metric in metrics))
    return sorted(metrics, key=lambda metric: groups.index(metric.group))


def flat(document: dict[str, Any], prefix: str = "evaluate") -> dict[str, float]:
    """Values of a `metrics.json` under the names that TensorBoard and Weights & Biases know them by."""
    metrics = document["metrics"].items()
    return {f"{prefix}/{name}": found["value"] for name, found in metrics if found["value"] is not None}


def _values(side: TripMeasures, field: str) -> Values:
    values = getattr(side, field)
    return Values(values, side.segment_offsets) if field == "segment_s" else Values.one_each(values)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.n)
