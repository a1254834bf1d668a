"""Ragged softmaxes against float64, one segment at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engine.softmax import distinct_log_sum, log_softmax

segments = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-30, 30, width=32)), min_size=1, max_size=6), max_size=6
)


def flatten(parts: list[list[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, candidates and lengths; equal candidates of a segment get equal logits, as from a model."""
    values = [(token, dict(reversed(part))[token]) for part in parts for token, _ in part]
    tokens = np.array([token for token, _ in values], np.int32)
    logits = np.array([logit for _, logit in values], np.float32)
    return logits, tokens, np.array([len(part) for part in parts], np.int64)


@given(segments)
def test_log_softmax(parts: list[list[tuple[int, float]]]) -> None:
    logits, _, lengths = flatten(parts)
    found = log_softmax(logits, lengths)
    assert found.dtype == np.float16
    assert np.all(found <= 0)
    for segment, result in zip(np.split(logits, np.cumsum(lengths)), np.split(found, np.cumsum(lengths)), strict=True):
        expected = segment.astype(np.float64) - np.logaddexp.reduce(segment.astype(np.float64))
        np.testing.assert_allclose(result.astype(np.float64), expected, rtol=1e-3, atol=1e-5)


@given(segments.filter(len))
def test_distinct_log_sum(parts: list[list[tuple[int, float]]]) -> None:
    logits, tokens, lengths = flatten(parts)
    found = distinct_log_sum(logits, tokens, lengths)
    ends = np.cumsum(lengths)
    for end, length, result in zip(ends, lengths, found, strict=True):
        part = slice(end - length, end)
        distinct = dict(zip(tokens[part].tolist(), logits[part].astype(np.float64).tolist(), strict=True))
        np.testing.assert_allclose(result, np.logaddexp.reduce(list(distinct.values())), rtol=1e-9, atol=1e-9)
