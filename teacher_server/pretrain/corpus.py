"""What `pretrain` trains on: the trips of a store as tokens, spans of them, batches of similar length.

trips -> road tokens -> spans (whole trips and crops) -> batches of similar length -> inputs and targets
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from shared import ragged, subset
from shared.arrays import Int32, Int64
from shared.errors import DataError, FileFormatError
from shared.files import digest
from shared.store import SplitName, Store
from shared.vocab import Vocabulary

POOL_BATCHES = 64
"""Batches whose trips are sorted by length together: enough to waste little padding, few enough to stay random."""


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """The trips of a split as tokens, each followed by EOT.

    Attributes:
        tokens: int32, trips back to back.
        starts: int64 [n], first token of each trip.
        lengths: int64 [n], tokens of each trip without EOT, all above 0.
    """

    tokens: Int32
    starts: Int64
    lengths: Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """One stretch of each trip, to be preceded by SOT.

    Attributes:
        starts: int64 [n], places in the corpus.
        lengths: int64 [n], tokens.
    """

    starts: Int64
    lengths: Int64


def fingerprint_of(store: Store) -> str:
    """Digest of all that a teacher is trained on: the trips, and the cells of their roads."""
    return digest(store.fingerprint, store.tokeniser.fingerprint)


def read_corpus(store: Store, split: SplitName, train_trips: int = 0, sample_seed: int = 0) -> Corpus:
    """The trips of a split as tokens.

    Args:
        store, split: where they are.
        train_trips, sample_seed: a sample of so many of them, as `subset.choose` draws it; 0 for all.

    Raises:
        ConfigError: there are fewer than `train_trips`.
        DataError: the split is missing or empty.
        FileFormatError: roads and tokens of the store do not belong together.
    """
    trips = store.trips(split)
    if train_trips:
        trips = trips.take(subset.choose(trips, train_trips, sample_seed, "train_trips", "training"))
    lengths = trips.lengths[trips.lengths > 0]
    if not len(lengths):
        raise DataError(f"{store.path}: the {split} split has no trips")
    vocabulary, road_token = store.tokeniser.vocabulary, store.road_token
    if len(road_token) == 0 or road_token.min() < 0 or road_token.max() >= vocabulary.cells:
        raise FileFormatError(f"{store.path}: road_token does not fit the vocabulary; run `prepare` again")
    tokens = np.full(int(lengths.sum()) + len(lengths), vocabulary.eot, np.int32)
    tokens[ragged.positions(lengths + 1) < np.repeat(lengths, lengths + 1)] = road_token[trips.roads]
    return Corpus(tokens, ragged.offsets(lengths + 1)[:-1], lengths)


def draw_spans(corpus: Corpus, longest: int, crop_probability: float, rng: np.random.Generator) -> Spans:
    """One span of each trip, at most `longest` tokens.

    With `crop_probability` it starts at a uniformly drawn place of the trip; otherwise at the origin or, if the
    trip is longer than the span, at a uniformly drawn place from which a whole span follows.
    """
    is_crop = rng.random(len(corpus.lengths)) < crop_probability
    choices = np.where(is_crop, corpus.lengths, np.maximum(corpus.lengths - longest, 0) + 1)
    skipped = rng.integers(choices)
    return Spans(corpus.starts + skipped, np.minimum(corpus.lengths - skipped, longest))


def make_batches(lengths: Int64, batch_tokens: int, rng: np.random.Generator | None) -> list[Int64]:
    """Groups sequences of similar length; rows times the longest is at most `batch_tokens` (or one row).

    Args:
        lengths: int64 [n], tokens of each sequence.
        batch_tokens: padded tokens of a batch.
        rng: draws who shares a batch and the order of the batches; None: sorted by length.
    """
    if rng is None:
        return list(_split(np.argsort(lengths, kind="stable"), lengths, batch_tokens))
    order = rng.permutation(len(lengths))
    pool = max(1, int(POOL_BATCHES * batch_tokens / lengths.mean()))
    batches: list[Int64] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        batches += _split(part[np.argsort(lengths[part], kind="stable")], lengths, batch_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def _split(ascending: Int64, lengths: Int64, batch_tokens: int) -> Iterator[Int64]:
    start = 0
    while start < len(ascending):
        rest = lengths[ascending[start : start + batch_tokens]]
        fitting = int(np.searchsorted(rest * np.arange(1, len(rest) + 1), batch_tokens, side="right"))
        yield ascending[start : start + max(1, fitting)]
        start += max(1, fitting)


def cut(trips: Int64, lengths: Int64, most_tokens: int | None) -> list[Int64]:
    """The micro-batches of a batch: rows times the longest is at most `most_tokens` (or one row); None: all at once.

    Args:
        trips: int64 [B], the shortest first.
        lengths: int64 [n], tokens of each sequence.
        most_tokens: padded tokens.
    """
    if most_tokens is None:
        return [trips] if len(trips) else []
    return list(_split(trips, lengths, most_tokens))


def make_batch(corpus: Corpus, spans: Spans, trips: Int64, vocabulary: Vocabulary) -> tuple[Int32, Int64]:
    """Right-padded inputs int32 [B, T] and targets int64 [B, T] of some spans.

    Inputs are SOT and the span; targets are the span and what follows it, the next cell or EOT.
    """
    starts, lengths = spans.starts[trips], spans.lengths[trips] + 1
    width = int(lengths.max())
    following = corpus.tokens[ragged.slices(starts, lengths)].astype(np.int64)
    targets = ragged.pad(following, lengths, width, vocabulary.pad)
    inputs = np.full((len(trips), width), vocabulary.pad, np.int32)
    inputs[:, 1:] = np.where(np.arange(1, width) < lengths[:, None], targets[:, :-1], vocabulary.pad)
    inputs[:, 0] = vocabulary.sot
    return inputs, targets
