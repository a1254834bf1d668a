"""Ragged arrays against loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared import ragged

row_lengths = st.lists(st.integers(0, 6), max_size=12)


@given(row_lengths)
def test_offsets_rows_and_positions(lengths: list[int]) -> None:
    array = np.array(lengths, np.int32)
    assert ragged.offsets(array).tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert ragged.rows(array).tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]
    assert ragged.positions(array).tolist() == [place for length in lengths for place in range(length)]
    for result in (ragged.offsets(array), ragged.rows(array), ragged.positions(array)):
        assert result.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 6)), max_size=12))
def test_slices(bounds: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(bounds, np.int32).reshape(-1, 2).T
    expected = [start + i for start, length in bounds for i in range(length)]
    result = ragged.slices(starts, lengths)
    assert result.tolist() == expected
    assert result.dtype == np.int64


@given(st.lists(st.lists(st.integers(-9, 9), max_size=5), max_size=8), st.integers(0, 3), st.sampled_from([-1, 7]))
def test_pad(rows: list[list[int]], extra: int, fill: int) -> None:
    width = max(map(len, rows), default=0) + extra
    values = np.array([value for row in rows for value in row], np.int16)
    padded = ragged.pad(values, np.array([len(row) for row in rows], np.int64), width, fill)
    assert padded.dtype == np.int16
    assert padded.shape == (len(rows), width)
    assert padded.tolist() == [row + [fill] * (width - len(row)) for row in rows]


def test_offsets_of_many_int32_lengths_do_not_overflow() -> None:
    lengths = np.full(3, 2**30, np.int32)
    assert ragged.offsets(lengths).tolist() == [0, 2**30, 2**31, 3 * 2**30]
