"""Floors: the next-road accuracy of rules that need no model, on every step of a split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Float64, Int64
from shared.store import Trips
from student_trainer.data import geometry
from student_trainer.prepare.counts import Counts, pair_offsets
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import Steps, steps_of
from student_trainer.prepare.workers import Workers


def measure(train: Counts, steps: Counts, nearest: int, successors: Successors) -> dict[str, float]:
    """Accuracies in [0, 1]; ties go to the earlier candidate.

    `single_successor` is the share of steps without a choice; `nearest_to_destination` takes
    the candidate that `count_nearest` counts; `first_order_markov` the most frequent successor
    in `train`, the first one where the road was never seen; `second_order_markov` the most
    frequent one after the last two roads, and backs off to the first order.
    """
    first_order = _most_frequent_transition(train, successors)
    hits = {
        "single_successor": steps.transition[successors.degree[successors.origin] == 1].sum(),
        "nearest_to_destination": nearest,
        "first_order_markov": steps.transition[first_order[first_order >= 0]].sum(),
        "second_order_markov": _second_order_hits(train, steps, first_order, successors),
    }
    return {name: int(count) / steps.steps for name, count in hits.items()}


def count_nearest(blocks: Iterable[Trips], successors: Successors, centroids: Float64, workers: Workers) -> int:
    """Steps to the candidate whose centroid (float64 [N, 2]) is nearest to the destination's."""

    def hits(trips: Trips) -> int:
        steps = steps_of(trips, successors)
        return int(np.count_nonzero(_nearest(steps, successors, centroids) == steps.transition))

    return sum(workers.in_order(hits, blocks))


def _nearest(steps: Steps, successors: Successors, centroids: Float64) -> Int64:
    """Slot of the candidate nearest to the destination, of each step."""
    degree = successors.degree[steps.road]
    transition = ragged.slices(successors.offsets[steps.road], degree)
    here = centroids[successors.roads[transition]]
    there = np.repeat(centroids[steps.destination], degree, axis=0)
    metres = geometry.haversine_m(here[:, 0], here[:, 1], there[:, 0], there[:, 1])
    return transition[_first_largest(-metres, degree)]


def _most_frequent_transition(train: Counts, successors: Successors) -> Int64:
    """Slot taken most often from each road, int64 [N]; -1 for a road without successors."""
    best = np.full(len(successors.degree), -1, np.int64)
    has_successors = successors.degree > 0
    best[has_successors] = _first_largest(train.transition, successors.degree[has_successors])
    return best


def _second_order_hits(train: Counts, steps: Counts, first_order: Int64, successors: Successors) -> int:
    """Steps to the transition taken most often after the one before; to the first order's where that is unknown."""
    next_degree = successors.degree[successors.roads]
    second = ragged.slices(successors.offsets[successors.roads], next_degree)  # transition of each pair
    before = np.flatnonzero(next_degree)  # transitions that another can follow
    best = _first_largest(train.pair, next_degree[before])
    backed_off = pair_offsets(successors)[before] + (first_order - successors.offsets[:-1])[successors.roads[before]]
    chosen = np.where(train.pair[best] > 0, best, backed_off)
    after_another = np.bincount(second, weights=steps.pair, minlength=len(steps.transition)).astype(np.int64)
    at_start = steps.transition - after_another
    return int(steps.pair[chosen].sum() + at_start[first_order[first_order >= 0]].sum())


def _first_largest(values: npt.NDArray, lengths: Int64) -> Int64:
    """Index of the first largest value of each ragged row; rows must not be empty."""
    starts = ragged.offsets(lengths)[:-1]
    largest = np.repeat(np.maximum.reduceat(values, starts), lengths)
    hits = np.flatnonzero(values == largest)
    return hits[np.searchsorted(hits, starts)]
