"""How questions to a teacher are cut into requests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire import Limits
from student_trainer.distill.asking import _parts


def limits(positions: int, candidates: int) -> Limits:
    return Limits(
        max_window=8, max_message_bytes=2**20, max_queued_positions=100, max_request_positions=positions,
        max_request_candidates=candidates,
    )  # fmt: skip


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 7), st.integers(9, 30))
def test_requests_hold_all_histories_in_order_and_keep_to_the_limits(
    lengths: list[int], positions: int, candidates: int
) -> None:
    parts = [lengths[part] for part in _parts(np.array(lengths, np.int64), limits(positions, candidates))]
    assert [length for part in parts for length in part] == lengths
    assert all(0 < len(part) <= positions and sum(part) <= candidates for part in parts)
    for part, following in itertools.pairwise(parts):  # none could have held one more
        assert len(part) == positions or sum(part) + following[0] > candidates


@pytest.mark.parametrize("lengths", [[50], [1, 50, 1]])
def test_a_history_that_no_request_can_hold_is_left_to_the_teacher(lengths: list[int]) -> None:
    parts = list(_parts(np.array(lengths, np.int64), limits(8, 10)))
    assert [lengths[part] for part in parts] == [[length] for length in lengths]
