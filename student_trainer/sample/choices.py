"""What a walker may do on each road, in the teacher's words: the cells of the successors, and the end of the trip.

The teacher knows cells. The probability of a cell is shared among the successors that lie in it, by how often labelled
trips took each transition, plus a constant.

Shapes: N roads, S transitions, O options (of a road: distinct cells of its successors, then EOT), D largest number of
successors, W walkers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import ragged
from shared.arrays import Bool, Float16, Float64, Int32, Int64
from student_trainer.data.network import RoadNetwork
from student_trainer.sample import philox

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
with np.errstate(over="ignore", invalid="ignore"):
    PROBABILITIES = np.exp(HALVES)
"""exp of every float16: the same bits wherever in an array, as vectorised exponentials do not promise."""
STAYS = -1
"""In place of a next road: the trip ends here."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """The options of every road.

    Attributes:
        successor_offsets: int64 [N + 1].
        successors: int32 [S].
        option_offsets: int64 [N + 1].
        option_token: int32 [O].
        option_of: int64 [S], which of its road's options the cell of a successor is.
        share: float64 [S], of the cell's probability.
        most: D.
    """

    successor_offsets: Int64
    successors: Int32
    option_offsets: Int64
    option_token: Int32
    option_of: Int64
    share: Float64
    most: int

    def candidates(self, road: Int64) -> tuple[Int32, Int32]:
        """Tokens to ask for on each road, back to back, and how many: int32 [sum], int32 [W]."""
        lengths = self.option_offsets[road + 1] - self.option_offsets[road]
        tokens = self.option_token[ragged.slices(self.option_offsets[road], lengths)]
        return tokens, lengths.astype(np.int32)

    def has_ways(self, road: Int64) -> Bool:
        """Whether a road has a successor: bool [W]."""
        return np.asarray(self.successor_offsets[road + 1] > self.successor_offsets[road])

    def probabilities(self, road: Int64, log_probs: Float16) -> Float64:
        """Of each successor, in the network's order, and in the last column of the end of the trip: float64 [W, D + 1].

        Args:
            road: int64 [W].
            log_probs: float16, the teacher's of `candidates(road)`.
        """
        start, place = self.successor_offsets[road][:, None], np.arange(self.most)
        is_way = place < (self.successor_offsets[road + 1][:, None] - start)
        way = np.where(is_way, start + place, 0)
        lengths = self.option_offsets[road + 1] - self.option_offsets[road]
        ends = np.cumsum(lengths)
        mass = PROBABILITIES[np.ascontiguousarray(log_probs).view(np.uint16)]
        option = np.where(is_way, (ends - lengths)[:, None] + self.option_of[way], 0)
        found = np.empty((len(road), self.most + 1))
        found[:, :-1] = np.where(is_way, mass[option] * self.share[way], 0.0)
        found[:, -1] = mass[ends - 1]
        return found

    def log_odds_of_end(self, road: Int64, log_probs: Float16) -> Float64:
        """log q(EOT) - log q(any successor), of roads that have one: float64 [W]; arguments as of `probabilities`."""
        found = self.probabilities(road, log_probs)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(found[:, -1]) - np.log(found[:, :-1].sum(1)))

    def draw(self, road: Int64, log_probs: Float16, end_factor: Float64, number: Float64) -> Int64:
        """The next road of each walker, `STAYS` where the trip ends: int64 [W].

        Sums run along a walker's own row, so that no bit depends on the others.

        Args:
            road, log_probs: as of `probabilities`.
            end_factor: float64 [W], of the probability of the end, before a walker's are renormalised; see `ends`.
            number: float64 [W], random ones in [0, 1).
        """
        probabilities = self.probabilities(road, log_probs)
        probabilities[:, -1] *= end_factor
        chosen = philox.pick(np.cumsum(probabilities, axis=1), number)
        has_ended = chosen == self.most
        way = np.where(has_ended, 0, self.successor_offsets[road] + chosen)
        return np.where(has_ended, STAYS, self.successors[way])


def make_choices(network: RoadNetwork, eot: int, taken: Int64, smoothing: float) -> Choices:
    """The options of a network with at least one transition.

    Args:
        network: N roads.
        eot: token of the end of a trip.
        taken: int64 [S], how often labelled trips took each transition.
        smoothing: added to them.
    """
    degree = np.diff(network.successor_offsets)
    road = ragged.rows(degree)
    token = network.road_token[network.successors].astype(np.int64)
    base = int(eot) + 1  # above every token: cells come first
    key, cell = np.unique(road * base + token, return_inverse=True)
    cells = np.bincount(key // base, minlength=network.num_roads)
    offsets = ragged.offsets(cells + 1)
    tokens = np.full(int(offsets[-1]), eot, np.int32)
    tokens[ragged.slices(offsets[:-1], cells)] = key % base
    weight = taken + smoothing
    return Choices(
        successor_offsets=network.successor_offsets,
        successors=network.successors,
        option_offsets=offsets,
        option_token=tokens,
        option_of=cell - ragged.offsets(cells)[road],
        share=weight / np.bincount(cell, weight)[cell],
        most=int(degree.max()),
    )
