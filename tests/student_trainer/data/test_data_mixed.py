"""Labelled and sampled trips, numbered through: the same as one split that holds both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.random_city import random_network, random_trips

from shared import ragged
from shared.store import Trips
from student_trainer.data.mixed import MixedTrips

NETWORK, _ = random_network()
LABELLED, SAMPLED = random_trips(NETWORK, 7, seed=1), random_trips(NETWORK, 5, seed=2)
MIXED = MixedTrips(LABELLED, SAMPLED)
TOGETHER = Trips(
    np.concatenate([LABELLED.roads, SAMPLED.roads]),
    np.concatenate([LABELLED.times, SAMPLED.times]),
    ragged.offsets(np.concatenate([LABELLED.lengths, SAMPLED.lengths])),
    np.concatenate([LABELLED.source_rows, SAMPLED.source_rows]),
)


@given(st.lists(st.integers(0, 11), max_size=30))
def test_trips_are_taken_as_from_both_one_after_the_other(numbers: list[int]) -> None:
    """In any order, repeated, of one kind alone, or none."""
    index = np.array(numbers, np.int64)
    assert np.array_equal(MIXED.lengths_of(index), TOGETHER.lengths_of(index))
    found, expected = MIXED.take(index), TOGETHER.take(index)
    for name, array in vars(expected).items():
        assert np.array_equal(getattr(found, name), array), name
        assert getattr(found, name).dtype == array.dtype, name


def test_the_sampled_ones_follow_the_labelled_ones() -> None:
    assert MIXED.first_sampled == 7
    first = MIXED.take(np.array([7]))
    assert np.array_equal(first.roads, SAMPLED.roads[: SAMPLED.lengths[0]])


def test_a_number_that_no_trip_has_is_an_error() -> None:
    with pytest.raises(IndexError):
        MIXED.take(np.array([12]))
