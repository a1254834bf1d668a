"""How much more, or less, often trips end than the teacher says: a few numbers, fitted on labelled trips.

A teacher that sees a window cannot tell how long a trip already is. It has learned trips from their starts and from
other places, so it also gives the end too little. A number for each range of lengths is added to log q(EOT): the
maximum-likelihood estimate, with which the labelled trips are expected to end as often as they do in that range.

Shapes: P positions of labelled trips, B ranges of lengths.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Bool, Float64, Int32, Int64
from shared.store import Trips
from shared.subset import evenly
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.teacher import Teacher
from student_trainer.sample.choices import Choices

MOST_TRIPS = 2000
"""Labelled trips that are asked about; more would change the numbers by less than it matters."""
RANGES = 20
"""With as many labelled trips that end in each; B is one more, unless some are the same."""
LARGEST = 20.0
"""Of a number: where trips always end if they have a choice, or never."""
HALVINGS = 60


@dataclasses.dataclass(frozen=True, eq=False)
class Ends:
    """What is added to log q(EOT), by the roads of a trip so far.

    Attributes:
        after: int64 [B - 1] ascending: a trip of more roads than the k-th is in range k + 1 or later.
        shift: float64 [B].
    """

    after: Int64
    shift: Float64

    def factor(self, roads: npt.NDArray[np.integer]) -> Float64:
        """What q(EOT) is multiplied by in trips of so many roads: float64 [n]."""
        return np.exp(self.shift)[self.range_of(roads)]

    def range_of(self, roads: npt.NDArray[np.integer]) -> Int64:
        """The range that trips of so many roads are in: int64 [n]."""
        return np.searchsorted(self.after, roads)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"after_roads": self.after.tolist(), "shift": self.shift.tolist()}

    def __str__(self) -> str:
        factors = np.exp(self.shift[np.abs(self.shift) < LARGEST / 2])
        by = (
            f"by {factors.min():.2g} to {factors.max():.2g}, depending on length"
            if len(factors)
            else "by 0 or endlessly"
        )
        is_never = bool(self.shift[0] < -LARGEST / 2) and len(self.after) > 0
        return by + (f" (0 before {self.after[0] + 1} roads)" if is_never else "")


AS_THE_TEACHER_SAYS = Ends(np.zeros(0, np.int64), np.zeros(1))


def fit_ends(teacher: Teacher, trips: Trips, choices: Choices, road_token: Int32, window: int) -> Ends:
    """What to add to log q(EOT).

    Args:
        teacher: to ask.
        trips: labelled ones; at most `MOST_TRIPS` are taken, evenly.
        choices: of each road.
        road_token: int32 [N].
        window: tokens of history that the teacher is shown.

    Raises:
        TeacherError: it does not answer.
    """
    trips = trips.take(evenly(len(trips), MOST_TRIPS))
    road = trips.roads.astype(np.int64)
    has_ended = np.zeros(len(road), bool)
    has_ended[trips.offsets[1:] - 1] = True
    chosen = np.flatnonzero(choices.has_ways(road))
    roads = ragged.positions(trips.lengths) + 1
    shown = np.minimum(roads, window)
    tokens = road_token[road[ragged.slices(chosen + 1 - shown[chosen], shown[chosen])]]
    candidates = choices.candidates(road[chosen])
    query = ScoreQuery(HistoryMode.WINDOW, tokens, shown[chosen].astype(np.int32), *candidates)
    log_odds = choices.log_odds_of_end(road[chosen], teacher.submit(query).result().log_probs)
    return fit(log_odds, roads[chosen], has_ended[chosen])


def fit(log_odds: Float64, roads: Int64, has_ended: Bool) -> Ends:
    """The ranges, and the best number for each: up to the shortest trip, then with the same number of ends.

    Args:
        log_odds: float64 [P] of the end, as the teacher says.
        roads: int64 [P] of the trips so far.
        has_ended: bool [P].
    """
    lengths = np.sort(roads[has_ended])
    cuts = (
        np.append(lengths[:1] - 1, lengths[len(lengths) * np.arange(1, RANGES) // RANGES]) if len(lengths) else lengths
    )
    ends = Ends(np.unique(cuts[cuts > 0]), np.zeros(0))
    part = ends.range_of(roads)
    shift = [shift_of(log_odds[part == k], int(has_ended[part == k].sum())) for k in range(len(ends.after) + 1)]
    return dataclasses.replace(ends, shift=np.array(shift))


def shift_of(log_odds: Float64, ends: int) -> float:
    """The number b for which sigmoid(log_odds + b) add up to `ends`: the maximum of the likelihood in b.

    Args:
        log_odds: float64 [P].
        ends: 0 to P; at either end b has no bound, and is `LARGEST`.
    """
    low, high = -LARGEST, LARGEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = float((1 / (1 + np.exp(-(log_odds + middle)))).sum())
        low, high = (middle, high) if expected < ends else (low, middle)
    return (low + high) / 2
