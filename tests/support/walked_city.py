"""Teachers by a formula, and every trip that they allow with its probability, for tests of what samples from them."""

from __future__ import annotations

import zlib
from concurrent.futures import Future

import numpy as np

from shared import ragged
from shared.wire import ScoreQuery, ScoreReply
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.teacher import FailureStats


def mass(context: tuple[int, ...], token: int) -> float:
    """What a token weighs after a context, 1 to 8; it depends on every token of the context."""
    return 1.0 + zlib.crc32(repr((context, token)).encode()) % 8


class WeighingTeacher:
    """Gives a token after a context the probability mass(context, token) / 8 / V, in float16, as a `Teacher` does.

    Attributes:
        rows: histories of each request so far.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self.revision, self.failure_stats = "weighing", FailureStats()
        self.rows: list[int] = []
        self._size = vocabulary_size

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        contexts = np.split(query.history_tokens, ragged.offsets(query.history_lengths)[1:-1])
        candidates = np.split(query.candidate_tokens, ragged.offsets(query.candidate_lengths)[1:-1])
        self.rows.append(len(contexts))
        log_probs, masses = [], []
        for context, tokens in zip(contexts, candidates, strict=True):
            weights = np.array([mass(tuple(context.tolist()), token) for token in tokens.tolist()])
            log_probs.append(np.log(weights / weights.sum()))
            masses.append(weights.sum() / 8 / self._size)
        future: Future[ScoreReply] = Future()
        shown = np.array(masses, np.float16) if query.include_candidate_mass else None
        future.set_result(ScoreReply(np.concatenate(log_probs).astype(np.float16), shown, self.revision, 0, 0))
        return future

    def close(self) -> None:
        """Nothing to free."""


def enumerate_trips(
    network: RoadNetwork, eot: int, first: dict[int, float], taken: dict[tuple[int, int], float], window: int, most: int
) -> dict[tuple[int, ...], float]:
    """The probability of every trip of at most `most` roads, by the words of the documentation; the key () holds those
    that would be longer.

    Args:
        network: the roads.
        eot: token of the end.
        first, taken: weight of each road as the first one, and of each transition, within their cell.
        window: cells that the teacher is shown.
        most: roads of a trip.
    """
    token = network.road_token.tolist()
    found: dict[tuple[int, ...], float] = {(): 0.0}

    def share(road: int, roads: list[int], weight: dict[int, float]) -> float:
        return weight[road] / sum(weight[other] for other in roads if token[other] == token[road])

    def follow(trip: tuple[int, ...], probability: float) -> None:
        here = trip[-1]
        following = network.successors[network.successor_offsets[here] : network.successor_offsets[here + 1]].tolist()
        if not following:
            found[trip] = found.get(trip, 0.0) + probability
            return
        context = tuple(token[road] for road in trip[-window:])
        cells = {token[road] for road in following}
        total = sum(mass(context, cell) for cell in cells) + mass(context, eot)
        found[trip] = found.get(trip, 0.0) + probability * mass(context, eot) / total
        weight = {road: taken[here, road] for road in following}
        for road in following:
            step = probability * mass(context, token[road]) / total * share(road, following, weight)
            if len(trip) == most:
                found[()] += step
            else:
                follow((*trip, road), step)

    roads = list(range(network.num_roads))
    total = sum(mass((), cell) for cell in set(token))
    for road in roads:
        follow((road,), mass((), token[road]) / total * share(road, roads, first))
    return found
