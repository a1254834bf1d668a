"""The share of turns that other trips do not take, by its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared import ragged
from shared.store import Trips
from student_trainer.data.turns import unseen_share

Roads = list[list[int]]
SOME = st.lists(st.lists(st.integers(0, 3), max_size=7), max_size=6)


def trips_of(roads: Roads) -> Trips:
    flat = np.array([road for trip in roads for road in trip], np.int32)
    lengths = np.array([len(trip) for trip in roads], np.int64)
    rows = np.arange(len(roads), dtype=np.int64)
    return Trips(flat, np.zeros(len(flat), np.int64), ragged.offsets(lengths), rows)


def turns(roads: Roads) -> list[tuple[int, ...]]:
    return [tuple(trip[first : first + 3]) for trip in roads for first in range(len(trip) - 2)]


@given(seen=SOME, other=SOME)
def test_the_share_of_unseen_turns_follows_the_definition(seen: Roads, other: Roads) -> None:
    known, asked = set(turns(seen)), turns(other)
    expected = sum(turn not in known for turn in asked) / len(asked) if asked else 0
    assert unseen_share(trips_of(seen), trips_of(other)) == expected


def test_large_road_numbers_are_told_apart() -> None:
    """Their product would not fit in 64 bits."""
    top = 2**31 - 1
    seen, other = [[top, top - 1, top - 2]], [[top, top - 1, top - 2], [top - 2, top - 1, top], [top, top, top]]
    assert unseen_share(trips_of(seen), trips_of(other)) == 2 / 3
