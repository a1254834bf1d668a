"""How much more, or less, often trips end than the teacher says: one number, fitted on labelled trips.

A teacher that sees a window cannot tell the first cells of a trip from others: it has learned both, and so gives the
end too little. The number is added to log q(EOT); it is the maximum-likelihood estimate, with which the labelled trips
are expected to end as often as they do.

Shapes: P positions of labelled trips.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

import numpy as np

from shared import ragged
from shared.arrays import Float64, Int32, Int64
from shared.store import Trips
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.distill.teacher import Teacher
from student_trainer.sample.choices import Choices

MOST_TRIPS = 2000
"""Labelled trips that are asked about; more would change the number by less than it matters."""
LARGEST = 20.0
"""Of the number: of trips that always end where there is a choice, or never."""
HALVINGS = 60


def fit_end(
    teacher: Teacher, trips: Trips, choices: Choices, road_token: Int32, window: int, size: int, requests: int
) -> float:
    """What to add to log q(EOT).

    Args:
        teacher: to ask.
        trips: labelled ones; at most `MOST_TRIPS` are taken, evenly.
        choices: of each road.
        road_token: int32 [N].
        window: tokens of history that the teacher is shown.
        size: positions of a request.
        requests: under way at once.

    Raises:
        TeacherError: it does not answer.
    """
    trips = trips.take(np.arange(0, len(trips), -(-len(trips) // MOST_TRIPS)))
    road = trips.roads.astype(np.int64)
    has_ended = np.zeros(len(road), bool)
    has_ended[trips.offsets[1:] - 1] = True
    chosen = np.flatnonzero(choices.has_ways(road))
    shown = np.minimum(ragged.positions(trips.lengths) + 1, window)
    under_way: deque[tuple[Int64, Future[ScoreReply]]] = deque()
    log_odds: list[Float64] = []

    def collect() -> None:
        asked, future = under_way.popleft()
        log_odds.append(choices.log_odds_of_end(road[asked], future.result().log_probs))

    for part in np.array_split(chosen, max(1, -(-len(chosen) // size))):
        if len(under_way) == requests:
            collect()
        tokens = road_token[road[ragged.slices(part + 1 - shown[part], shown[part])]]
        query = ScoreQuery(HistoryMode.WINDOW, tokens, shown[part].astype(np.int32), *choices.candidates(road[part]))
        under_way.append((part, teacher.submit(query)))
    while under_way:
        collect()
    return shift_of(np.concatenate(log_odds), int(has_ended[chosen].sum()))


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
