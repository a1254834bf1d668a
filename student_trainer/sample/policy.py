"""How walkers choose: where they begin, what they ask, which way they go, and when they have arrived.

Shapes: W walkers.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol

import numpy as np

from shared.arrays import Float16, Float64, Int32, Int64
from student_trainer.sample import philox
from student_trainer.sample.choices import Choices
from student_trainer.sample.ends import Ends
from student_trainer.sample.philox import Purpose, uniform


class End(enum.IntEnum):
    """Why a walk ended, or that it has not."""

    GOES_ON = -1
    ENDED = 0
    DEAD_END = 1
    TOO_LONG = 2
    LOST = 3


class Policy(Protocol):
    """What is the same for all walkers. Nothing of a walker depends on the others."""

    def begin(self, walker: Int64) -> tuple[Int64, Int64]:
        """First road of each walker, and the road that it goes to, -1 if to none: int64 [W] both."""
        ...

    def arrive(self, road: Int64, goal: Int64) -> Int64:
        """Whether a walk ends with a road that it has just entered, before anything is asked: `End`, int64 [W]."""
        ...

    def candidates(self, road: Int64) -> tuple[Int32, Int32]:
        """Tokens to ask for on each road, back to back, and how many: int32 [sum], int32 [W]."""
        ...

    def draw(self, road: Int64, goal: Int64, roads: Int64, log_probs: Float16, number: Float64) -> Int64:
        """The next road of each walker, or `STAYS`: int64 [W].

        Args:
            road, goal: int64 [W], where each is and goes to.
            roads: int64 [W], of the trip so far.
            log_probs: float16, the teacher's of `candidates(road)`.
            number: float64 [W], random ones in [0, 1).
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class HistoryPolicy:
    """As the teacher says: by the history alone, up to the end of the trip.

    Attributes:
        choices: of each road.
        ends: how much more often trips end than the teacher says.
        origin: float64 [N], running sums of the roads' weights as first ones.
        seed: of the random numbers.
    """

    choices: Choices
    ends: Ends
    origin: Float64
    seed: int

    def begin(self, walker: Int64) -> tuple[Int64, Int64]:
        """See `Policy`."""
        return first_roads(self.origin, self.seed, walker), np.full(len(walker), -1)

    def arrive(self, road: Int64, goal: Int64) -> Int64:
        """See `Policy`."""
        return np.where(self.choices.has_ways(road), End.GOES_ON, End.DEAD_END)

    def candidates(self, road: Int64) -> tuple[Int32, Int32]:
        """See `Policy`."""
        return self.choices.candidates(road)

    def draw(self, road: Int64, goal: Int64, roads: Int64, log_probs: Float16, number: Float64) -> Int64:
        """See `Policy`."""
        return self.choices.draw(road, log_probs, self.ends.factor(roads), number)


def first_roads(origin: Float64, seed: int, walker: Int64) -> Int64:
    """The first road of each walker, from running sums of the roads' weights [N]: int64 [W]."""
    return philox.pick(origin, uniform(seed, Purpose.ORIGIN, walker, np.zeros_like(walker)))
