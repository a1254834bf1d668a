"""Trips -> the distinct rows that training asks a teacher about; see `shared.answers_file`.

What is asked is what `student_trainer.distill.query` builds of a batch: the cells of a trip's roads but its last, and
the cells of each road's successors in the store's order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from shared import ragged
from shared.answers_file import WHOLE_HISTORY
from shared.arrays import Int32, Int64
from shared.errors import CompatibilityError, DataError
from shared.store import Store, Trips
from shared.vocab import Tokeniser
from shared.wire import HistoryMode, ScoreQuery

STEPS_AT_ONCE = 2**20
"""Steps of trips whose rows are compared together, about."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roads:
    """The cells of N roads, and what may follow them.

    Attributes:
        token: int32 [N].
        choice: int32 [N], list of the successors' cells.
        list_lengths: int32 [L]; list_tokens: int32 [T], the distinct lists.
    """

    token: Int32
    choice: Int32
    list_lengths: Int32
    list_tokens: Int32

    @classmethod
    def of(cls, store: Store) -> Roads:
        """Those of a store."""
        token, offsets = store.road_token.astype(np.int32), store.network("successor_offsets")
        tokens = token[store.network("successors")]
        numbers: dict[bytes, int] = {}
        lists = [tokens[first:last] for first, last in itertools.pairwise(offsets)]
        choice = np.array([numbers.setdefault(one.tobytes(), len(numbers)) for one in lists], np.int32)
        distinct = [np.frombuffer(one, np.int32) for one in numbers]
        lengths = np.array([len(one) for one in distinct], np.int32)
        return cls(token, choice, lengths, np.concatenate([*distinct, np.empty(0, np.int32)]))


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Distinct rows, as in `shared.answers_file.Answers`: of windows, or of whole trips."""

    roads: Roads
    are_trips: bool
    history_lengths: Int32
    history_tokens: Int32
    choices: Int32

    @property
    def positions(self) -> int:
        """Scored positions of all rows."""
        return len(self.choices)

    def queries(self, positions: int, candidates: int) -> Iterator[ScoreQuery]:
        """All rows in order, in queries of at most so many positions and candidates, unless a single row has more."""
        scored = self.history_lengths if self.are_trips else np.ones(len(self.history_lengths), np.int64)
        token_at, position_at = ragged.offsets(self.history_lengths), ragged.offsets(scored)
        candidate_at = ragged.offsets(self.roads.list_lengths[self.choices])
        list_at = ragged.offsets(self.roads.list_lengths)
        first, rows = 0, len(scored)
        while first < rows:
            ends = (position_at[first] + positions, candidate_at[position_at[first]] + candidates)
            last = int(np.searchsorted(position_at, ends[0], "right")) - 1
            last = min(last, int(np.searchsorted(candidate_at[position_at], ends[1], "right")) - 1)
            last = max(last, first + 1)
            choices = self.choices[position_at[first] : position_at[last]]
            lengths = self.roads.list_lengths[choices]
            yield ScoreQuery(
                mode=HistoryMode.SEQUENCE if self.are_trips else HistoryMode.WINDOW,
                history_tokens=self.history_tokens[token_at[first] : token_at[last]],
                history_lengths=self.history_lengths[first:last],
                candidate_tokens=self.roads.list_tokens[ragged.slices(list_at[choices], lengths)],
                candidate_lengths=lengths,
            )
            first = last


def collect(roads: Roads, splits: Iterable[Trips], windows: Sequence[int], max_steps: int) -> Questions:
    """The distinct rows of trips.

    Args:
        roads: of the store.
        splits: trips on them.
        windows: cells of history, or (0,) for all.
        max_steps: the last steps that are kept of longer trips, 0 for all.
    """
    parts = (part for trips in splits for part in _parts(roads, trips, max_steps))
    longest = max(windows)
    if longest == WHOLE_HISTORY:
        return _whole_trips(roads, parts)
    none = np.empty((0, longest + 1), np.int32)
    rows = _distinct([none, *(_distinct([_windows(*part, window, longest) for window in windows]) for part in parts)])
    cells = rows[:, :longest]
    exists = cells >= 0
    return Questions(
        roads=roads,
        are_trips=False,
        history_lengths=exists.sum(axis=1, dtype=np.int32),
        history_tokens=cells[exists],
        choices=np.ascontiguousarray(rows[:, longest]),
    )


def check_teacher(tokeniser: Tokeniser, max_window: int, place: str, store: Store, windows: Sequence[int]) -> None:
    """Refuses a teacher that does not fit the store, or sees less than is asked.

    Args:
        tokeniser: the teacher's.
        max_window: cells that it can see after SOT.
        place: where it is, for people.
        store: whose trips are asked about.
        windows: cells of history.

    Raises:
        CompatibilityError: naming what differs, and how to mend it.
    """
    store.check_vocabulary(tokeniser, f"at {place}")
    if max(windows) > max_window:
        raise CompatibilityError(
            f"a window of {max(windows)} is longer than the teacher at {place} can see: {max_window}"
        )


def check_roads(trips: Trips, roads: int, where: str) -> None:
    """Refuses trips that are not on these roads; raises `DataError` naming the trip."""
    wrong = (trips.roads < 0) | (trips.roads >= roads)
    if wrong.any():
        place = int(np.argmax(wrong))
        trip = int(np.searchsorted(trips.offsets, place, "right")) - 1
        raise DataError(f"{where}: trip {trip} has road {trips.roads[place]}, but the store's are 0..{roads - 1}")


def _parts(roads: Roads, trips: Trips, max_steps: int) -> Iterator[tuple[Int64, Int32, Int32]]:
    """Of some trips at a time: steps of each, and of every step its cell and its list of candidates."""
    steps = np.maximum(trips.lengths - 1, 0)
    kept = np.minimum(steps, max_steps) if max_steps else steps
    total, first = np.cumsum(kept), 0
    while first < len(kept):
        done = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, done + STEPS_AT_ONCE, "right")))
        chosen = slice(first, last)
        step = ragged.slices(trips.offsets[:-1][chosen] + steps[chosen] - kept[chosen], kept[chosen])
        road = trips.roads[step]
        yield kept[chosen], roads.token[road], roads.choice[road]
        first = last


def _windows(lengths: Int64, token: Int32, choice: Int32, window: int, longest: int) -> Int32:
    """Every step's window, right-aligned with -1 before it, and its list: int32 [steps, longest + 1]."""
    rows = np.full((len(token), longest + 1), -1, np.int32)
    rows[:, longest] = choice
    place = ragged.positions(lengths)
    for back in range(min(window, int(lengths.max(initial=0)))):
        reaches = np.flatnonzero(place >= back)
        rows[reaches, longest - 1 - back] = token[reaches - back]
    return rows


def _distinct(parts: list[Int32]) -> Int32:
    """Each row once, in an order that depends on the rows alone: neighbours share the beginnings of their windows."""
    rows = np.ascontiguousarray(np.concatenate(parts))
    whole = rows.view(np.dtype((np.void, rows.strides[0])))[:, 0]
    found: Int32 = np.unique(whole).view(np.int32).reshape(-1, rows.shape[1])
    return found


def _whole_trips(roads: Roads, parts: Iterator[tuple[Int64, Int32, Int32]]) -> Questions:
    found: dict[bytes, tuple[Int32, Int32]] = {}
    for lengths, token, choice in parts:
        at = ragged.offsets(lengths)
        for first, last in itertools.pairwise(at):
            if last > first:
                trip = token[first:last], choice[first:last]
                found.setdefault(trip[0].tobytes() + trip[1].tobytes(), trip)
    none = np.empty(0, np.int32)
    return Questions(
        roads=roads,
        are_trips=True,
        history_lengths=np.array([len(tokens) for tokens, _ in found.values()], np.int32),
        history_tokens=np.concatenate([tokens for tokens, _ in found.values()] or [none]),
        choices=np.concatenate([choices for _, choices in found.values()] or [none]),
    )
