"""Road attributes and target statistics as public HOSER defines them; pure functions."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from shared.arrays import Float32, Float64, Int64
from student_trainer.prepare.counts import Counts

log = logging.getLogger(__name__)


def z_scores(values: Float64, name: str) -> Float32:
    """(x - mean) / population standard deviation, float32; zeros where all values are equal.

    Everything is computed in float32, as public HOSER does: of a city's longitudes only a
    few hundred steps of float32 are left, so float64 would give visibly other features.
    """
    x = values.astype(np.float32)
    if np.ptp(x) == 0:
        log.warning("%s is the same for all roads; its z-scores are 0", name)
        return np.zeros_like(x)
    z: Float32 = (x - x.mean()) / x.std()
    return z


def road_types(highway: Sequence[str]) -> tuple[list[str], Int64]:
    """The sorted road classes, and the index of each road's class: int64 [N].

    Classes that are all integers sort by value, others as text.
    """
    names = set(highway)
    classes = sorted(names, key=int) if all(_is_integer(name) for name in names) else sorted(names)
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.array([index[name] for name in highway], np.int64)


def travel_time_statistics(train: Counts) -> tuple[float, float]:
    """Mean and population standard deviation of log(1 + seconds) over all steps of `train`."""
    values, weights = np.log1p(train.seconds.astype(np.float64)), train.seconds_count
    mu = math.fsum(weights * values) / train.steps
    sigma = math.sqrt(math.fsum(weights * (values - mu) ** 2) / train.steps)
    if len(values) == 1:
        log.warning("every step of train takes the same time; its deviation is taken as 1")
        sigma = 1.0
    return mu, sigma


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
