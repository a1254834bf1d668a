"""Which teacher a history goes to, and queries cut along histories and put together again. Pure numpy.

A history's endpoint depends on its tokens and on who is there, not on what else is in the batch: the same trip finds
the same teacher in every epoch, whose cache knows it. Rendezvous hashing (Thaler, Ravishankar 1998): each pair of
history and teacher has a random weight and the highest one wins, so that only the histories of a teacher that leaves
move, and come back with it.

Shapes: R histories, H of their tokens, P positions, K candidates, A teachers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from shared import ragged
from shared.arrays import Bool, Int64, UInt64
from shared.mixing import mix
from shared.wire import HistoryMode, Limits, ScoreQuery, ScoreReply

ENVELOPE_BYTES = 1024
"""Of a message beside its arrays, more than it ever has: numbers, lengths of fields, the trace's context."""


def history_hashes(query: ScoreQuery) -> UInt64:
    """A hash of each history's tokens and their order: uint64 [R]."""
    lengths = query.history_lengths
    position = ragged.positions(lengths).astype(np.uint64)
    sums = np.zeros(len(query.history_tokens) + 1, np.uint64)
    np.cumsum(mix((position << np.uint64(32)) | query.history_tokens.astype(np.uint32)), out=sums[1:])
    bounds = ragged.offsets(lengths)
    return mix((sums[bounds[1:]] - sums[bounds[:-1]]) ^ lengths.astype(np.uint64))


def seeds(names: Sequence[str]) -> UInt64:
    """What stands for each teacher's name in `rendezvous`: uint64 [A]."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def rendezvous(hashes: UInt64, names: UInt64, present: Int64) -> Int64:
    """The teacher of each history, among those that are present: int64 [R].

    Args:
        hashes: uint64 [R].
        names: uint64 [A], see `seeds`.
        present: indices of teachers; at least one.
    """
    weights = mix(hashes[:, None] ^ names[present][None, :])
    chosen: Int64 = present[weights.argmax(1)]
    return chosen


@dataclasses.dataclass(frozen=True, eq=False)
class SubQuery:
    """The histories of a query that go to one endpoint.

    Attributes:
        endpoint: where to; of parts for the same teacher, their number.
        query: these histories alone.
        positions: which of the whole query's positions they are, bool [P] or a range of them; None: all.
        candidates: the same of its candidates, bool [K] or a range.
    """

    endpoint: int
    query: ScoreQuery
    positions: Bool | slice | None = None
    candidates: Bool | slice | None = None


def split(query: ScoreQuery, endpoint_of: Int64) -> list[SubQuery]:
    """Cuts a query along its histories, one sub-query an endpoint that occurs; a single one is the query itself.

    Args:
        query: R histories.
        endpoint_of: int64 [R]; of a query without histories, [1].
    """
    endpoints = np.unique(endpoint_of)
    if len(endpoints) == 1:
        return [SubQuery(int(endpoints[0]), query)]
    return [_select(query, int(endpoint), endpoint_of == endpoint) for endpoint in endpoints]


def within(query: ScoreQuery, limits: Limits) -> list[SubQuery]:
    """Cuts a query along its histories into parts that a teacher takes; a query that it takes is the only one itself.

    A history that is too large alone is a part, too: the teacher says what is wrong with it.
    """
    in_rows = np.ones_like(query.history_lengths) if query.mode is HistoryMode.WINDOW else query.history_lengths
    bounds = ragged.offsets(in_rows)
    candidates = np.diff(ragged.offsets(query.candidate_lengths)[bounds])
    numbers = candidates + in_rows + query.history_lengths + 1  # of 4 bytes each
    costs = np.stack([in_rows, candidates, 4 * numbers], axis=1).astype(np.int64)  # [R, 3]
    most = np.array(
        [limits.max_request_positions, limits.max_request_candidates, limits.max_message_bytes - ENVELOPE_BYTES]
    )
    if (costs.sum(0) <= most).all():
        return [SubQuery(0, query)]
    first, filled = [0], np.zeros(3, np.int64)
    for row, cost in enumerate(costs):
        if row and (filled + cost > most).any():
            first.append(row)
            filled = np.zeros(3, np.int64)
        filled += cost
    return _ranges(query, [*first, len(costs)])


def _ranges(query: ScoreQuery, bounds: Sequence[int]) -> list[SubQuery]:
    """The histories `bounds[i]` to `bounds[i + 1]` of a query as its part i, whose arrays are views of the query's."""
    tokens = ragged.offsets(query.history_lengths)
    positions = np.arange(len(tokens)) if query.mode is HistoryMode.WINDOW else tokens
    candidates = ragged.offsets(query.candidate_lengths)
    parts = []
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        of_positions = slice(int(positions[first]), int(positions[last]))
        of_candidates = slice(int(candidates[of_positions.start]), int(candidates[of_positions.stop]))
        part = dataclasses.replace(
            query,
            history_tokens=query.history_tokens[tokens[first] : tokens[last]],
            history_lengths=query.history_lengths[first:last],
            candidate_tokens=query.candidate_tokens[of_candidates],
            candidate_lengths=query.candidate_lengths[of_positions],
        )
        parts.append(SubQuery(number, part, of_positions, of_candidates))
    return parts


def _select(query: ScoreQuery, endpoint: int, histories: Bool) -> SubQuery:
    tokens = np.repeat(histories, query.history_lengths)
    positions = histories if query.mode is HistoryMode.WINDOW else tokens
    candidates = np.repeat(positions, query.candidate_lengths)
    cut = dataclasses.replace(
        query,
        history_tokens=query.history_tokens[tokens],
        history_lengths=query.history_lengths[histories],
        candidate_tokens=query.candidate_tokens[candidates],
        candidate_lengths=query.candidate_lengths[positions],
    )
    return SubQuery(endpoint, cut, positions, candidates)


def merge(query: ScoreQuery, sub_queries: Sequence[SubQuery], replies: Sequence[ScoreReply]) -> ScoreReply:
    """The reply to a query from those to its sub-queries, bit for bit; waiting and computing are the longest one's."""
    if sub_queries[0].positions is None:
        return replies[0]
    log_probs = np.empty(len(query.candidate_tokens), np.float16)
    mass = np.empty(query.positions, np.float16) if query.include_candidate_mass else None
    for sub_query, reply in zip(sub_queries, replies, strict=True):
        log_probs[sub_query.candidates] = reply.log_probs
        if mass is not None:
            mass[sub_query.positions] = reply.candidate_mass
    return ScoreReply(
        log_probs=log_probs,
        candidate_mass=mass,
        weights_revision=replies[0].weights_revision,
        queue_us=max(reply.queue_us for reply in replies),
        compute_us=max(reply.compute_us for reply in replies),
    )
