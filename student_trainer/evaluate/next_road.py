"""Next-road predictions of a model on a split: right, sure, calibrated, and on time.

Shapes: P positions with K candidates, n trips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Bool, Float64, Int64
from shared.store import Trips
from student_trainer.evaluate.trip_metrics import Better


@dataclasses.dataclass(frozen=True, eq=False)
class Positions:
    """Of each of P positions.

    Attributes:
        trip, step: int64 [P] index in the split, and in the trip's roads.
        has_choice: bool [P], whether there are two candidates or more.
        is_hit: bool [P], whether the first most likely candidate is the next road.
        confidence: float64 [P], its probability.
        nll_nats: float64 [P], -log probability of the next road; NaN where it is not among the candidates.
        seconds_error: float64 [P], predicted minus true seconds to the next road; NaN likewise.
        seconds: float64 [P], the true ones.
    """

    trip: Int64
    step: Int64
    has_choice: Bool
    is_hit: Bool
    confidence: Float64
    nll_nats: Float64
    seconds_error: Float64
    seconds: Float64


@dataclasses.dataclass(frozen=True)
class StepMetric:
    """A number of each step, and its mean over steps.

    Attributes:
        name: of the mean, with its unit: a key of `metrics.json`.
        column: of `next_road.parquet`, with `<column>_count`: sums over the steps of each trip, and how many there are.
        measure: positions -> [P], NaN where it is not defined.
        of_durations: it is of how long steps take, and means nothing where a split's durations are placeholders.
        is_compared: whether `compare` tests it.
        is_card: whether a report's summary shows it.
    """

    name: str
    column: str
    label: str
    unit: str
    better: Better
    description: str
    measure: Callable[[Positions], npt.NDArray]
    of_durations: bool = False
    is_compared: bool = True
    is_card: bool = False


def _relative_time_error(positions: Positions) -> Float64:
    log_seconds = np.log1p(positions.seconds)
    predicted = np.log1p(np.maximum(positions.seconds + positions.seconds_error, 0))
    return np.asarray(np.abs(predicted - log_seconds) / np.maximum(log_seconds, 1))


METRICS: tuple[StepMetric, ...] = (
    StepMetric(
        "next_road_accuracy", "hits", "Next road right", "share", "higher",
        "Share of the steps whose most likely candidate is the real next road; candidates are the successors.",
        lambda positions: positions.is_hit, is_card=True,
    ),
    StepMetric(
        "next_road_choice_accuracy", "choice_hits", "Next road right, where there is a choice", "share", "higher",
        "The same over the steps with two candidates or more: the others cannot be wrong.",
        lambda positions: np.where(positions.has_choice, positions.is_hit, np.nan), is_card=True,
    ),
    StepMetric(
        "next_road_nll_nats", "nll_nats", "Next road, negative log-likelihood", "nat", "lower",
        "Mean of -log probability of the real next road, where it is among the candidates.",
        lambda positions: positions.nll_nats,
    ),
    StepMetric(
        "next_road_time_error_s", "time_error_s", "Time to the next road, error", "s", "lower",
        "Mean absolute error of the predicted time to the real next road.",
        lambda positions: np.abs(positions.seconds_error), of_durations=True,
    ),
    StepMetric(
        "next_road_time_error_relative_upstream", "time_error_relative", "Time to the next road, upstream's error",
        "share", "lower", "Mean of |x' - x| / max(x, 1) with x = log(1 + seconds), which upstream calls MAPE.",
        _relative_time_error, of_durations=True, is_compared=False,
    ),
)  # fmt: skip


def positions_of(arrays: dict[str, npt.NDArray], trips: Trips) -> Positions:
    """Reads the arrays of `student_trainer.predict.positions.predict`, in float64."""
    offsets, label, logit = arrays["candidate_offsets"], arrays["label"], arrays["logit"].astype(np.float64)
    start, length = offsets[:-1], np.diff(offsets)
    top = np.maximum.reduceat(logit, start)
    log_sum = top + np.log(np.add.reduceat(np.exp(logit - np.repeat(top, length)), start))
    slot = np.where(logit == np.repeat(top, length), ragged.positions(length), len(logit))
    is_known = label >= 0
    chosen = start + np.where(is_known, label, 0)
    at = trips.offsets[arrays["trip"]] + arrays["step"]
    seconds = (trips.times[at + 1] - trips.times[at]).astype(np.float64)
    return Positions(
        trip=arrays["trip"],
        step=arrays["step"],
        has_choice=length > 1,
        is_hit=np.minimum.reduceat(slot, start) == label,
        confidence=np.exp(top - log_sum),
        nll_nats=np.where(is_known, log_sum - logit[chosen], np.nan),
        seconds_error=np.where(is_known, arrays["seconds"][chosen] - seconds, np.nan),
        seconds=seconds,
    )


def per_trip(positions: Positions, values: npt.NDArray, n: int) -> tuple[Float64, Float64]:
    """Sum of the known values of each of n trips, and how many they are: float64 [n] each."""
    values = values.astype(np.float64)
    known = np.isfinite(values)
    trip = positions.trip[known]
    return np.bincount(trip, values[known], n).astype(np.float64), np.bincount(trip, minlength=n).astype(np.float64)


def binned_confidence(positions: Positions, bins: int, n: int) -> Float64:
    """What each trip adds to each bin of confidence, bins of equal width.

    Returns:
        [n, 3 * bins]: sums of confidence, sums of hits, numbers of positions.
    """
    place = np.minimum((positions.confidence * bins).astype(np.int64), bins - 1)
    flat = positions.trip * bins + place
    parts = (positions.confidence, positions.is_hit, np.ones(len(flat)))
    return np.concatenate([np.bincount(flat, part, n * bins).reshape(n, bins) for part in parts], axis=1)


def expected_calibration_error(sums: Float64) -> Float64:
    """Mean over positions of |accuracy - confidence| of their bin (Naeini et al. 2015).

    Args:
        sums: [..., 3 * bins] as in `binned_confidence`.
    """
    confidence, hits, counts = np.split(sums, 3, axis=-1)
    return np.asarray(np.abs(hits - confidence).sum(axis=-1) / counts.sum(axis=-1))


def reliability(sums: Float64) -> dict[str, list[float]]:
    """Mean confidence and accuracy of each bin that holds positions, and how many.

    Args:
        sums: [3 * bins].
    """
    confidence, hits, counts = np.split(sums, 3)
    used = counts > 0
    return {
        "confidence": (confidence[used] / counts[used]).tolist(),
        "accuracy": (hits[used] / counts[used]).tolist(),
        "count": counts[used].astype(int).tolist(),
    }
