"""Which numbers are taken of many: at most so many, in order, and equally far apart or as a seed draws them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared.subset import draw, evenly


@given(count=st.integers(0, 300), most=st.integers(1, 100))
def test_numbers_are_equally_far_apart_and_all_where_there_are_few(count: int, most: int) -> None:
    found = evenly(count, most)
    assert len(found) <= most and len(np.unique(np.diff(found))) <= 1 and (len(found) > 0) == (count > 0)
    assert np.array_equal(found, np.arange(count)) == (count <= most)
    assert not len(found) or (found[0] == 0 and found[-1] < count)
    assert len(found) >= min(count, most) / 2


@given(count=st.integers(0, 300), wanted=st.integers(0, 100), seed=st.integers(0, 9))
def test_a_draw_is_ascending_and_its_seeds(count: int, wanted: int, seed: int) -> None:
    found = draw(count, wanted, seed)
    assert (
        len(found) == min(count, wanted)
        and (np.diff(found) > 0).all()
        and np.array_equal(found, draw(count, wanted, seed))
    )
    assert not len(found) or (found[0] >= 0 and found[-1] < count)
