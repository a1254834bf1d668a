"""The metrics of an evaluation, each with its name, unit, interval and meaning.

Names are stable: they are keys of `metrics.json` and, after `evaluate/`, of TensorBoard and Weights & Biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from student_trainer.evaluate import distributions, next_road
from student_trainer.evaluate.bootstrap import Bootstrap, Estimate
from student_trainer.evaluate.distributions import Values, jensen_shannon_nats
from student_trainer.evaluate.measures import PairMeasures, TripMeasures
from student_trainer.evaluate.next_road import Positions

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Group = Literal["arrival", "global", "local", "time", "next_road"]

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
    better: Literal["lower", "higher"]
    description: str
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Everything but the name, as JSON: NaN as null."""
        values = {key: _plain(value) for key, value in vars(self.estimate).items()}
        words = {key: getattr(self, key) for key in ("unit", "group", "better", "label", "description")}
        return values | words


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A distribution of real and generated values, as shares of each side, and the edges of the bins."""

    name: str
    label: str
    unit: str
    edges: Float
    real: Float
    generated: Float

    def as_dict(self) -> dict[str, Any]:
        """As JSON. The last bin holds the last edge and all above it, so that there are as many bins as edges."""
        sides = {
            side: (c / max(c.sum(), 1)).tolist() for side, c in (("real", self.real), ("generated", self.generated))
        }
        return {"label": self.label, "unit": self.unit, "edges": self.edges.tolist(), **sides}


def arrival_metrics(arrived: Bool, in_cells: Bool, same_route: Bool, bootstrap: Bootstrap) -> Iterator[Metric]:
    """Whether trips get where they were asked to go; of all pairs."""
    for name, label, flags, description in (
        (
            "arrival_rate",
            "Arrived",
            arrived,
            "Share of the pairs whose trip ends at the destination that was asked for.",
        ),
        (
            "od_cell_match_rate",
            "OD cells reached",
            in_cells,
            "Share of the pairs whose trip ends in the 0.001° cell of the destination that was asked for.",
        ),
        ("same_route_rate", "Same route", same_route, "Share of the pairs whose trip is the real one, road by road."),
    ):
        yield Metric(name, "arrival", label, "share", "higher", description, bootstrap.mean(flags.astype(np.float64)))


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


def global_metrics(
    real: TripMeasures, whole: TripMeasures, generated: TripMeasures, bootstrap: Bootstrap
) -> tuple[list[Metric], list[Histogram]]:
    """Divergences of distributions over all trips.

    Args:
        real: of the pairs' own real trips.
        whole: of all real trips of the split with two or more roads, which upstream compares with.
        generated: of all generated trips, those that did not arrive included.
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
                "and of the same pairs' real trips; 99 equal bins up to the largest real value and one above. "
                f"With so many pairs, chance alone gives {floor / math.log(2):.3g}.",
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


LOCAL = (
    ("hausdorff", "Hausdorff distance", "km", "hausdorff_km", "largest distance of a point of one trip from the other"),
    ("dtw", "Dynamic time warping", "km", "dtw_km", "sum of distances along the best warping of one onto the other"),
    (
        "dtw_per_point",
        "Dynamic time warping per road",
        "km",
        "dtw_per_point_km",
        "the same divided by the mean number of roads of the two",
    ),
    ("edr", "Edit distance (100 m)", "share", "edr", "edits that make one trip the other, points within 100 m being "
     "equal, divided by the longer one's roads"),
)  # fmt: skip


def local_metrics(
    pairs: PairMeasures, in_cells: PairMeasures | None, arrived: Bool, bootstrap: Bootstrap
) -> Iterator[Metric]:
    """Distances of generated trips from real ones.

    Args:
        pairs: of each trip from its own real counterpart.
        in_cells: of trips that share OD cells, matched as upstream does; None if there are none.
    """
    for name, label, unit, field, meaning in LOCAL:
        values = getattr(pairs, field)
        shown = "" if unit == "share" else f"_{unit}"
        yield Metric(
            f"{name}{shown}", "local", label, unit, "lower",
            f"Mean over all pairs, those that did not arrive included: {meaning}.", bootstrap.mean(values),
        )  # fmt: skip
        yield Metric(
            f"{name}{shown}_arrived", "local", f"{label}, arrived trips", unit, "lower",
            "The same over trips that arrived: easier pairs, and others for each model.",
            bootstrap.mean(np.where(arrived, values, np.nan)),
        )  # fmt: skip
        matched = np.zeros(0) if in_cells is None else getattr(in_cells, field)
        yield Metric(
            f"{name}{shown}_od_cells_upstream", "local", f"{label}, shared OD cells", unit, "lower",
            "As upstream has it: the k-th generated with the k-th real trip of the split between the same 0.001° "
            "cells, by the cells reached; trips that went elsewhere drop out.",
            Estimate(float(matched.mean()) if len(matched) else NAN, NAN, NAN, len(matched)),
        )  # fmt: skip


def time_metrics(real: TripMeasures, generated: TripMeasures, arrived: Bool, bootstrap: Bootstrap) -> Iterator[Metric]:
    """Errors of length and duration of whole trips."""
    duration = np.abs(generated.duration_s - real.duration_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(real.duration_s > 0, duration / real.duration_s, np.nan)
    distance = np.abs(generated.distance_km - real.distance_km)
    for name, label, unit, values, description in (
        ("trip_duration_error_s", "Trip duration, error", "s", duration, "Mean absolute difference from the real one."),
        (
            "trip_duration_error_s_arrived", "Trip duration, error, arrived trips", "s",
            np.where(arrived, duration, np.nan), "The same over trips that arrived.",
        ),
        (
            "trip_duration_error_relative", "Trip duration, relative error", "share", relative,
            "Mean absolute difference divided by the real duration, where that is above 0.",
        ),
        ("trip_distance_error_km", "Trip distance, error", "km", distance, "Mean absolute difference from the real's."),
    ):  # fmt: skip
        yield Metric(name, "time", label, unit, "lower", description, bootstrap.mean(values))
    yield Metric(
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
    log_seconds = np.log1p(positions.seconds)
    predicted = np.log1p(np.maximum(positions.seconds + positions.seconds_error, 0))
    with_seconds = np.abs(positions.seconds_error)
    relative = np.abs(predicted - log_seconds) / np.maximum(log_seconds, 1)
    metrics = []
    for name, label, unit, better, values, description in (
        (
            "next_road_accuracy", "Next road right", "share", "higher", positions.is_hit,
            "Share of the steps whose most likely candidate is the real next road; candidates are the successors.",
        ),
        (
            "next_road_nll_nats", "Next road, negative log-likelihood", "nat", "lower", positions.nll_nats,
            "Mean of -log probability of the real next road, where it is among the candidates.",
        ),
        (
            "next_road_time_error_s", "Time to the next road, error", "s", "lower", with_seconds,
            "Mean absolute error of the predicted time to the real next road.",
        ),
        (
            "next_road_time_error_relative_upstream", "Time to the next road, upstream's error", "share", "lower",
            relative,
            "Mean of |x' - x| / max(x, 1) with x = log(1 + seconds), which upstream calls MAPE.",
        ),
    ):  # fmt: skip
        sums, counts = next_road.per_trip(positions, np.asarray(values), n)
        estimate = bootstrap.ratio(sums, counts, int(counts.sum()))
        metrics.append(Metric(name, "next_road", label, unit, better, description, estimate))  # type: ignore[arg-type]
    binned = next_road.binned_confidence(positions, bins, n)
    metrics.append(
        Metric(
            "next_road_ece", "next_road", "Next road, calibration error", "share", "lower",
            f"Expected calibration error: mean distance of accuracy and confidence, in {bins} bins of equal width.",
            bootstrap.statistic(binned, next_road.expected_calibration_error, len(positions.trip), is_distance=True),
        )
    )  # fmt: skip
    return metrics, next_road.reliability(binned.sum(axis=0))


def flat(document: dict[str, Any], prefix: str = "evaluate") -> dict[str, float]:
    """Values of a `metrics.json` under the names that TensorBoard and Weights & Biases know them by."""
    metrics = document["metrics"].items()
    return {f"{prefix}/{name}": found["value"] for name, found in metrics if found["value"] is not None}


def _values(side: TripMeasures, field: str) -> Values:
    values = getattr(side, field)
    return Values(values, side.segment_offsets) if field == "segment_s" else Values.one_each(values)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.n)


def _plain(value: float) -> float | int | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
