"""Equal contexts and remembered ones, also where hashes collide and sets are full."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_server import cache
from teacher_server.cache import WAYS, StateCache

WIDTH, N_EMBD = 4, 3


def make_cache(entries: int) -> StateCache:
    size = entries * (N_EMBD * 4 + (WIDTH + 3) * 4)
    return StateCache(size, WIDTH, N_EMBD, torch.float32, torch.device("cpu"))


def states_of(contexts: np.ndarray) -> torch.Tensor:
    """A state that tells which context it belongs to."""
    code = contexts @ 10.0 ** np.arange(contexts.shape[1]) + 0.5 * contexts.shape[1]
    return torch.from_numpy(np.repeat(code[:, None], N_EMBD, 1).astype(np.float32))


@pytest.mark.parametrize("collide", [False, True])
def test_distinct_rows(collide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if collide:
        monkeypatch.setattr(cache, "_hash", lambda rows: np.zeros(len(rows), np.uint64))
    rows = np.array([[1, 2], [3, 4], [1, 2], [2, 1]], np.int32)
    distinct, inverse = cache.distinct_rows(rows)
    np.testing.assert_array_equal(distinct[inverse], rows)


def test_equal_rows_are_merged() -> None:
    rows = np.repeat(np.arange(7, dtype=np.int32)[:, None], 3, 1)[[0, 0, 5, 6, 5, 5]]
    assert len(cache.distinct_rows(rows)[0]) == 3


@given(
    st.lists(st.tuples(st.integers(1, WIDTH), st.lists(st.integers(0, 3), min_size=1, max_size=20)), max_size=8),
    st.sampled_from([1, 40]),
    st.booleans(),
)
def test_what_is_found_is_what_was_put(calls: list[tuple[int, list[int]]], entries: int, collide: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(cache, "_hash", lambda rows: np.zeros(len(rows), np.uint64))
        held = make_cache(entries)
        for width, seeds in calls:
            contexts = np.unique([np.full(width, seed) + np.arange(width) % 2 for seed in seeds], axis=0)
            contexts = contexts.astype(np.int32)
            found = held.find(contexts)
            hit = found >= 0
            assert torch.equal(held.states(found[hit]), states_of(contexts[hit]))
            held.put(contexts[~hit], states_of(contexts[~hit]))


def test_put_contexts_are_found_again() -> None:
    held = make_cache(4000)
    contexts = np.unique(np.random.default_rng(0).integers(0, 1000, (100, WIDTH)), axis=0).astype(np.int32)
    for _ in range(WAYS):  # one a set and call
        missing = contexts[held.find(contexts) < 0]
        held.put(missing, states_of(missing))
    assert np.all(held.find(contexts) >= 0)
    assert torch.equal(held.states(held.find(contexts)), states_of(contexts))
    assert np.all(held.find(contexts[:, :-1]) < 0)
    assert 0 < held.hits < held.lookups


def test_the_oldest_of_a_full_set_makes_way() -> None:
    held = make_cache(1)
    assert held.slots == WAYS
    contexts = np.arange(WAYS + 1, dtype=np.int32)[:, None]
    for row in range(WAYS + 1):
        held.put(contexts[row : row + 1], states_of(contexts[row : row + 1]))
    assert (held.find(contexts) >= 0).tolist() == [False, *[True] * WAYS]
