"""Floors: the next-road accuracy of rules that need no model, on every step of a split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared import ragged
from student_trainer.data import geometry
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import Steps

Int = npt.NDArray[np.int64]


def measure(train: Steps, steps: Steps, successors: Successors, centroids: npt.NDArray[np.float64]) -> dict[str, float]:
    """Accuracies in [0, 1]; ties go to the earlier candidate.

    `single_successor` is the share of steps without a choice; `nearest_to_destination` takes
    the candidate whose centroid (float64 [N, 2]) is nearest to the destination's;
    `first_order_markov` the most frequent successor in `train`, the first one where the road
    was never seen; `second_order_markov` the most frequent one after the last two roads, and
    backs off to the first order.
    """
    first_order = _most_frequent_slot(train, successors)[steps.road]
    second_order = _second_order(train, steps, first_order, len(successors.roads))
    return {
        "single_successor": float((successors.degree[steps.road] == 1).mean()),
        "nearest_to_destination": float((_nearest(steps, successors, centroids) == steps.slot).mean()),
        "first_order_markov": float((first_order == steps.slot).mean()),
        "second_order_markov": float((second_order == steps.slot).mean()),
    }


def _nearest(steps: Steps, successors: Successors, centroids: npt.NDArray[np.float64]) -> Int:
    """Slot of the candidate nearest to the destination, of each step."""
    degree = successors.degree[steps.road]
    slot = ragged.slices(successors.offsets[steps.road], degree)
    here = centroids[successors.roads[slot]]
    there = np.repeat(centroids[steps.destination], degree, axis=0)
    metres = geometry.haversine_m(here[:, 0], here[:, 1], there[:, 0], there[:, 1])
    return slot[_first_largest(-metres, degree)]


def _most_frequent_slot(train: Steps, successors: Successors) -> Int:
    """Slot taken most often from each road, int64 [N]; -1 for a road without successors."""
    counts = np.bincount(train.slot, minlength=len(successors.roads))
    best = np.full(len(successors.degree), -1, np.int64)
    has_successors = successors.degree > 0
    best[has_successors] = _first_largest(counts, successors.degree[has_successors])
    return best


def _second_order(train: Steps, steps: Steps, first_order: Int, num_slots: int) -> Int:
    """Slot taken most often after the slot before; `first_order` where that is unknown."""
    seen = train.previous_slot >= 0
    pairs, counts = np.unique(train.previous_slot[seen] * num_slots + train.slot[seen], return_counts=True)
    if not len(pairs):
        return first_order
    previous_slot, slot = np.divmod(pairs, num_slots)
    previous, lengths = np.unique(previous_slot, return_counts=True)
    best = slot[_first_largest(counts, lengths)]
    place = np.searchsorted(previous, steps.previous_slot).clip(max=len(previous) - 1)
    return np.where(previous[place] == steps.previous_slot, best[place], first_order)


def _first_largest(values: npt.NDArray, lengths: Int) -> Int:
    """Index of the first largest value of each ragged row; rows must not be empty."""
    starts = ragged.offsets(lengths)[:-1]
    largest = np.repeat(np.maximum.reduceat(values, starts), lengths)
    hits = np.flatnonzero(values == largest)
    return hits[np.searchsorted(hits, starts)]
