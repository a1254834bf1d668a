"""Floors: how often rules that need no model find the next road, on the steps that a model was measured on.

A model's accuracy says little beside nothing. The rules are those of `prepare`, which measures them on validation; here
they are measured on the split of the evaluation. Ties go to the earlier candidate.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Bool, Int64
from shared.floors import RULES
from shared.store import Trips
from student_trainer.data import geometry
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate.next_road import Positions


@dataclasses.dataclass(frozen=True)
class Floor:
    """A rule's accuracy.

    Attributes:
        label: the rule.
        values: share of the steps that it gets right, by the name of the metric of models; None where there is no step.
    """

    label: str
    values: dict[str, float | None]


def measure(network: RoadNetwork, train: Trips, trips: Trips, positions: Positions) -> dict[str, Floor]:
    """Every rule, at the given positions of the split's trips.

    Args:
        train: the training split, whose turns are counted.
        trips: the split.
        positions: P steps of it.
    """
    at = trips.offsets[positions.trip] + positions.step
    road, following = trips.roads[at].astype(np.int64), trips.roads[at + 1].astype(np.int64)
    before = np.where(positions.step > 0, trips.roads[np.maximum(at - 1, 0)], -1).astype(np.int64)
    destination = trips.roads[trips.offsets[positions.trip + 1] - 1].astype(np.int64)
    first = _most_frequent(network, train)
    chosen = {
        "nearest_to_destination": _nearest(network, road, destination),
        "first_order_markov": first[road],
        "second_order_markov": _second_order(network, train, before, road, first),
    }
    return {
        name: Floor(RULES[name], _accuracies(roads == following, positions.has_choice))
        for name, roads in chosen.items()
    }


def _accuracies(hits: Bool, has_choice: Bool) -> dict[str, float | None]:
    return {
        name: float(part.mean()) if len(part) else None
        for name, part in (("next_road_accuracy", hits), ("next_road_choice_accuracy", hits[has_choice]))
    }


def _nearest(network: RoadNetwork, road: Int64, destination: Int64) -> Int64:
    """The successor of each road whose centroid is nearest to the destination's."""
    degree = np.diff(network.successor_offsets)[road]
    candidate = network.successors[ragged.slices(network.successor_offsets[road], degree)]
    here, there = network.line_centroid[candidate], np.repeat(network.line_centroid[destination], degree, axis=0)
    metres = geometry.haversine_m(here[:, 0], here[:, 1], there[:, 0], there[:, 1])
    starts = ragged.offsets(degree)[:-1]
    least = np.flatnonzero(metres == np.repeat(np.minimum.reduceat(metres, starts), degree))
    return candidate[least[np.searchsorted(least, starts)]].astype(np.int64)


def _most_frequent(network: RoadNetwork, train: Trips) -> Int64:
    """The successor taken most often from each road; the first one where none was, -1 where there is none: [N]."""
    counts = np.bincount(_slots(network, *_turns(train)), minlength=len(network.successors))
    degree = np.diff(network.successor_offsets)
    some = np.flatnonzero(degree)
    starts = network.successor_offsets[some]
    largest = np.repeat(np.maximum.reduceat(counts, starts), degree[some])
    hits = np.flatnonzero(counts == largest)
    best = np.full(len(degree), -1, np.int64)
    best[some] = network.successors[hits[np.searchsorted(hits, starts)]]
    return best


def _second_order(network: RoadNetwork, train: Trips, before: Int64, road: Int64, first: Int64) -> Int64:
    """The road that followed most often on the last two; `first` where these were never seen or there is one only."""
    inside = np.flatnonzero(_is_turn(train)[1:] & _is_turn(train)[:-1]) + 1  # the middle of three roads
    roads = train.roads.astype(np.int64)
    slot = _slots(network, roads[inside], roads[inside + 1])
    seen, counts = np.unique(np.stack([roads[inside - 1], roads[inside], slot], 1), axis=0, return_counts=True)
    order = np.lexsort((seen[:, 2], -counts, seen[:, 1], seen[:, 0]))
    pair = (seen[:, 0] * network.num_roads + seen[:, 1])[order]
    known, place = np.unique(pair, return_index=True)
    if len(known) == 0:
        return first[road]
    wanted = before * network.num_roads + road
    found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    followed = network.successors[seen[order[place[found]], 2]]
    return np.asarray(np.where((before >= 0) & (known[found] == wanted), followed, first[road]), np.int64)


def _is_turn(trips: Trips) -> Bool:
    """Whether each road of the flat roads has a next one in its trip."""
    has_next = np.ones(len(trips.roads), bool)
    has_next[trips.offsets[1:] - 1] = False
    return has_next


def _turns(trips: Trips) -> tuple[Int64, Int64]:
    """Every road with the road after it."""
    index = np.flatnonzero(_is_turn(trips))
    return trips.roads[index].astype(np.int64), trips.roads[index + 1].astype(np.int64)


def _slots(network: RoadNetwork, road: Int64, following: Int64) -> Int64:
    """Places in `successors` of roads after roads; all of a store's trips are on it."""
    origin = ragged.rows(np.diff(network.successor_offsets))
    keys = origin * network.num_roads + network.successors
    order = np.argsort(keys, kind="stable")
    return np.asarray(order[np.searchsorted(keys[order], road * network.num_roads + following)], np.int64)
