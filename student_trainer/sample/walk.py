"""Walkers on the road network: thousands advance together, a request a step for each group of them.

A walker's random numbers are its own, and so are its sums: its trip is the same in every group, whatever became of the
others. A place that a walker leaves is taken by the next one, so that requests stay large.

Shapes: W walkers of a group, M roads of a trip at most, L roads of all finished trips.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from shared import ragged
from shared.arrays import Bool, Int32, Int64
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.distill.teacher import Teacher
from student_trainer.sample.choices import STAYS
from student_trainer.sample.philox import Purpose, uniform
from student_trainer.sample.policy import End, Policy


@dataclasses.dataclass(frozen=True, eq=False)
class Walks:
    """Finished walks, by number.

    Attributes:
        number: int64 [n] of the walkers, ascending.
        end: int64 [n], see `End`.
        roads: int32 [L], back to back.
        offsets: int64 [n + 1].
    """

    number: Int64
    end: Int64
    roads: Int32
    offsets: Int64

    @property
    def is_trip(self) -> Bool:
        """Whether each may be kept: it ended, after two roads or more, as `prepare` demands. bool [n]."""
        return np.isin(self.end, (End.ENDED, End.DEAD_END)) & (np.diff(self.offsets) >= 2)

    @classmethod
    def nobody(cls) -> Walks:
        """No walk."""
        none = np.zeros(0, np.int64)
        return cls(none, none, np.zeros(0, np.int32), np.zeros(1, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Walks]) -> Walks:
        """All walks of the parts."""
        number = np.concatenate([part.number for part in parts])
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        order = np.argsort(number)
        starts = ragged.offsets(lengths)[:-1]
        roads = np.concatenate([part.roads for part in parts])
        return cls(
            number=number[order],
            end=np.concatenate([part.end for part in parts])[order],
            roads=roads[ragged.slices(starts[order], lengths[order])],
            offsets=ragged.offsets(lengths[order]),
        )

    def take(self, chosen: Int64) -> Walks:
        """The given walks."""
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        roads = self.roads[ragged.slices(self.offsets[chosen], lengths)]
        return Walks(self.number[chosen], self.end[chosen], roads, ragged.offsets(lengths))


@dataclasses.dataclass(frozen=True, eq=False)
class Ground:
    """What all walkers share.

    Attributes:
        policy: how they choose.
        road_token: int32 [N].
        seed: of the random numbers.
        window: tokens of history that the teacher is shown, at least 1.
        max_roads: M.
    """

    policy: Policy
    road_token: Int32
    seed: int
    window: int
    max_roads: int


class Group:
    """Walkers who ask together.

    Attributes:
        finished: walks that have ended, in no order.
    """

    def __init__(self, ground: Ground, take: Callable[[int], Int64], size: int) -> None:
        """`size` walkers, numbered by `take`, which gives so many numbers, or fewer where there are no more."""
        self._ground, self._take = ground, take
        self.finished: list[Walks] = []
        self._number, self._goal, self._length = np.zeros((3, size), np.int64)
        self._roads = np.zeros((size, ground.max_roads), np.int32)
        self._fill(np.arange(size))

    def __len__(self) -> int:
        """W, of those who still walk."""
        return len(self._number)

    def question(self) -> ScoreQuery:
        """What the teacher is asked for the next step: a window for each walker."""
        ground = self._ground
        shown = np.minimum(self._length, ground.window)
        flat = ragged.slices(np.arange(len(self)) * ground.max_roads + self._length - shown, shown)
        candidates, lengths = ground.policy.candidates(self._here())
        tokens = ground.road_token[self._roads.reshape(-1)[flat]]
        return ScoreQuery(HistoryMode.WINDOW, tokens, shown.astype(np.int32), candidates, lengths)

    def advance(self, reply: ScoreReply) -> None:
        """Every walker takes a step, or ends; new ones take the places of those who do."""
        policy = self._ground.policy
        number = uniform(self._ground.seed, Purpose.NEXT_ROAD, self._number, self._length)
        following = policy.draw(self._here(), self._goal, self._length, reply.log_probs, number)
        end = np.full(len(self), End.GOES_ON, np.int64)
        end[self._length == self._ground.max_roads] = End.TOO_LONG
        end[following == STAYS] = End.ENDED
        moves = np.flatnonzero(end == End.GOES_ON)
        self._roads[moves, self._length[moves]] = following[moves]
        self._length[moves] += 1
        end[moves] = policy.arrive(following[moves], self._goal[moves])
        places = np.flatnonzero(end != End.GOES_ON)
        self._finish(places, end[places])
        self._fill(places)

    def _here(self) -> Int64:
        return self._roads[np.arange(len(self)), self._length - 1].astype(np.int64)

    def _finish(self, places: Int64, end: Int64) -> None:
        if len(places) == 0:
            return
        lengths = self._length[places]
        roads = self._roads.reshape(-1)[ragged.slices(places * self._ground.max_roads, lengths)]
        self.finished.append(Walks(self._number[places], end, roads, ragged.offsets(lengths)))

    def _fill(self, places: Int64) -> None:
        """Puts new walkers at their origins; places that stay empty are removed."""
        while len(places):
            number = self._take(len(places))
            if len(number) < len(places):
                self._remove(places[len(number) :])
                places = places[: len(number)]  # they are ascending: these have not moved
            origin, goal = self._ground.policy.begin(number)
            self._number[places], self._goal[places], self._length[places] = number, goal, 1
            self._roads[places, 0] = origin
            end = self._ground.policy.arrive(origin, goal)
            is_over = end != End.GOES_ON
            places = places[is_over]
            self._finish(places, end[is_over])

    def _remove(self, places: Int64) -> None:
        stays = np.ones(len(self), bool)
        stays[places] = False
        self._number, self._goal, self._length = self._number[stays], self._goal[stays], self._length[stays]
        self._roads = self._roads[stays]


def walk(
    ground: Ground,
    teacher: Teacher,
    first: int,
    count: int,
    size: int,
    groups: int,
    advance: Callable[[int, int], None],
) -> Walks:
    """The walks of the walkers `first` to `first + count - 1`.

    Args:
        ground: what they walk on.
        teacher: whom they ask.
        first, count: their numbers.
        size: walkers of a group.
        groups: that take turns, so that the teacher computes for one while another is moved.
        advance: told after each request how many positions were asked, and how many trips were finished.

    Raises:
        TeacherError: the teacher does not answer.
    """
    taken = 0

    def take(wanted: int) -> Int64:
        nonlocal taken
        number = first + np.arange(taken, min(taken + wanted, count))
        taken += len(number)
        return number

    size = min(size, -(-count // groups))
    made = [Group(ground, take, size) for _ in range(groups)]
    turns: deque[tuple[Group, int, Future[ScoreReply]]] = deque()
    for group in made:
        _ask(group, teacher, turns)
    while turns:
        group, done, future = turns.popleft()
        asked = len(group)
        group.advance(future.result())
        trips = sum(int(part.is_trip.sum()) for part in group.finished[done:])
        advance(asked, trips)
        _ask(group, teacher, turns)
    return Walks.joined([part for group in made for part in group.finished])


def _ask(group: Group, teacher: Teacher, turns: deque[tuple[Group, int, Future[ScoreReply]]]) -> None:
    if len(group):
        turns.append((group, len(group.finished), teacher.submit(group.question())))
