"""Spans and batches by their definition: what a teacher is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ragged
from shared.vocab import Vocabulary
from teacher_server.pretrain import corpus as corpora
from teacher_server.pretrain.corpus import Corpus


def make_corpus(trips: list[list[int]], eot: int) -> Corpus:
    lengths = np.array([len(trip) for trip in trips], np.int64)
    tokens = np.array([token for trip in trips for token in [*trip, eot]], np.int32)
    return Corpus(tokens, ragged.offsets(lengths + 1)[:-1], lengths)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(0, 9))
def test_batches_follow_the_definition(trips: list[list[int]], seed: int) -> None:
    vocabulary = Vocabulary.full(10)
    corpus = make_corpus(trips, vocabulary.eot)
    longest = 5
    spans = corpora.draw_spans(corpus, longest, 0.5, np.random.default_rng(seed))
    inputs, targets = corpora.make_batch(corpus, spans, np.arange(len(trips)), vocabulary)
    for row, trip in enumerate(trips):
        start, count = int(spans.starts[row] - corpus.starts[row]), int(spans.lengths[row])
        assert 0 <= start < len(trip)
        assert count == min(len(trip) - start, longest)
        following = [*trip, vocabulary.eot][start : start + count + 1]
        padding = [vocabulary.pad] * (inputs.shape[1] - count - 1)
        assert inputs[row].tolist() == [vocabulary.sot, *following[:-1], *padding]
        assert targets[row].tolist() == [*following, *padding]


def test_places_of_crops_are_uniform() -> None:
    corpus = make_corpus([list(range(10))] * 20_000, 99)
    rng = np.random.default_rng(0)
    whole = corpora.draw_spans(corpus, 20, 0.0, rng)
    assert np.array_equal(whole.starts, corpus.starts)
    assert np.all(whole.lengths == 10)
    places = corpora.draw_spans(corpus, 20, 1.0, rng).starts - corpus.starts
    np.testing.assert_allclose(np.bincount(places, minlength=10) / len(places), 0.1, atol=0.01)
    half = corpora.draw_spans(corpus, 20, 0.5, rng).starts - corpus.starts
    assert np.mean(half == 0) == pytest.approx(0.55, abs=0.02)


def test_every_part_of_a_long_trip_is_seen() -> None:
    corpus = make_corpus([list(range(10))] * 5_000, 99)
    spans = corpora.draw_spans(corpus, 4, 0.0, np.random.default_rng(0))
    assert np.all(spans.lengths == 4)
    assert set((spans.starts - corpus.starts).tolist()) == set(range(7))


@given(st.lists(st.integers(2, 60), min_size=1, max_size=200), st.integers(1, 200), st.booleans())
def test_batches_hold_every_sequence_once(lengths: list[int], batch_tokens: int, is_random: bool) -> None:
    array = np.array(lengths, np.int64)
    batches = corpora.make_batches(array, batch_tokens, np.random.default_rng(0) if is_random else None)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= batch_tokens
