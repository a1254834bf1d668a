"""Cutting queries along rows: against brute force, and what must not move."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import scores_of

from shared.mixing import mix
from shared.wire import HistoryMode, Limits, ScoreQuery, ScoreReply, encode_query
from student_trainer.distill import routing
from student_trainer.distill.client import STREAM_BYTES


@st.composite
def queries(draw: st.DrawFn) -> ScoreQuery:
    mode = draw(st.sampled_from(list(HistoryMode)))
    rows = draw(st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=8))
    positions = len(rows) if mode is HistoryMode.WINDOW else sum(map(len, rows))
    candidates = draw(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=positions, max_size=positions))
    return ScoreQuery(
        mode,
        np.array(list(itertools.chain(*rows)), np.int32),
        np.array([len(row) for row in rows], np.int32),
        np.array(list(itertools.chain(*candidates)), np.int32),
        np.array([len(row) for row in candidates], np.int32),
        window=2 if mode is HistoryMode.SEQUENCE else 0,
        include_candidate_mass=draw(st.booleans()),
    )


def reply_to(query: ScoreQuery) -> ScoreReply:
    """An answer in which each candidate and each position can be told apart by its tokens."""
    context = query.history_lengths if query.mode is HistoryMode.WINDOW else query.history_tokens
    mass = (context / 8).astype(np.float16) if query.include_candidate_mass else None
    log_probs = (-query.candidate_tokens - np.repeat(context, query.candidate_lengths) / 8).astype(np.float16)
    return ScoreReply(log_probs, mass, "r", len(query.history_lengths), 1)


def rows_of(query: ScoreQuery) -> list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """Each row's tokens with its positions' candidates."""
    tokens, candidates = iter(query.history_tokens.tolist()), iter(query.candidate_tokens.tolist())
    lengths, rows = iter(query.candidate_lengths.tolist()), []
    for length in query.history_lengths.tolist():
        positions = 1 if query.mode is HistoryMode.WINDOW else length
        row = tuple(next(tokens) for _ in range(length))
        rows.append((row, tuple(tuple(next(candidates) for _ in range(next(lengths))) for _ in range(positions))))
    return rows


@given(queries(), st.data())
def test_parts_hold_their_rows_and_merge_to_the_whole(query: ScoreQuery, data: st.DataObject) -> None:
    count = len(query.history_lengths)
    places = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.int64)
    parts = routing.split(query, places)
    assert [part.endpoint for part in parts] == sorted(set(places.tolist()))
    for part in parts:
        expected = [row for row, place in zip(rows_of(query), places, strict=True) if place == part.endpoint]
        assert rows_of(part.query) == expected
        assert (part.query.mode, part.query.window) == (query.mode, query.window)
    merged, whole = routing.merge(query, parts, [reply_to(part.query) for part in parts]), reply_to(query)
    assert merged.log_probs.tobytes() == whole.log_probs.tobytes()
    if query.include_candidate_mass:
        assert merged.candidate_mass is not None and whole.candidate_mass is not None
        assert merged.candidate_mass.tobytes() == whole.candidate_mass.tobytes()


def cost_of(query: ScoreQuery) -> tuple[int, int, int]:
    """Positions, candidates and bytes of a request, without its envelope."""
    arrays = (query.history_tokens, query.history_lengths, query.candidate_tokens, query.candidate_lengths)
    return query.positions, len(query.candidate_tokens), 4 * sum(map(len, arrays))


@given(queries(), st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 120)))
def test_parts_keep_to_a_teacher_s_limits_in_the_order_of_rows(query: ScoreQuery, most: tuple[int, int, int]) -> None:
    limits = Limits(5, most[2] + routing.ENVELOPE_BYTES, 100, most[0], most[1])
    parts = routing.within(query, limits)
    assert [row for part in parts for row in rows_of(part.query)] == rows_of(query)
    for part in parts:
        is_within = all(cost <= limit for cost, limit in zip(cost_of(part.query), most, strict=True))
        assert is_within or len(part.query.history_lengths) == 1, "a row too large alone is left to the teacher"
        size = encode_query(part.query, 2**63).ByteSize() + STREAM_BYTES
        assert size <= limits.max_message_bytes or not is_within, "what is cut here is not refused by the client"
        assert len(parts) == 1 or part.query.candidate_tokens.base is not None, "a part copies nothing"
    for part, following in itertools.pairwise(parts):  # none could have held one more
        first = routing.split(following.query, np.arange(len(following.query.history_lengths)))[0].query
        together = np.add(cost_of(part.query), cost_of(first))
        assert (together > most).any()
    merged, whole = routing.merge(query, parts, [reply_to(part.query) for part in parts]), reply_to(query)
    assert merged.log_probs.tobytes() == whole.log_probs.tobytes()


def test_one_place_is_not_cut() -> None:
    empty = np.zeros(0, np.int32)
    query = ScoreQuery(HistoryMode.WINDOW, empty, empty, empty, empty)
    (part,) = routing.split(query, np.zeros(1, np.int64))
    assert part.query is query
    reply = ScoreReply(np.zeros(0, np.float16), None, "r", 0, 0)
    assert routing.merge(query, [part], [reply]) is reply


@given(queries(), queries())
def test_a_history_hashes_alike_in_every_batch(query: ScoreQuery, other: ScoreQuery) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for q in (query, other):
        for (row, _), row_hash in zip(rows_of(q), routing.history_hashes(q).tolist(), strict=True):
            assert seen.setdefault(row, row_hash) == row_hash
    assert len(set(seen.values())) == len(seen)


@given(st.integers(2, 6), st.data())
def test_only_the_rows_of_the_one_that_leaves_move(count: int, data: st.DataObject) -> None:
    hashes = mix(np.arange(2000, dtype=np.uint64))
    names = routing.seeds([f"host{i}:1" for i in range(count)])
    everybody = np.arange(count)
    gone = data.draw(st.integers(0, count - 1))
    before = routing.rendezvous(hashes, names, everybody)
    after = routing.rendezvous(hashes, names, np.delete(everybody, gone))
    assert (after != gone).all()
    assert (before == after)[before != gone].all()
    share = np.bincount(before, minlength=count) / len(hashes)
    assert (np.abs(share * count - 1) < 0.25).all()


def test_fakes_agree() -> None:
    """`scores_of` answers position by position, which the client's tests with several teachers rely on."""
    ones = np.ones(3, np.int32)
    query = ScoreQuery(HistoryMode.WINDOW, ones, ones, np.array([1, 2, 3, 4, 5, 6], np.int32), 2 * ones)
    parts = routing.split(query, np.array([0, 1, 0]))
    replies = [ScoreReply(scores_of(part.query), None, "r", 0, 0) for part in parts]
    assert routing.merge(query, parts, replies).log_probs.tobytes() == scores_of(query).tobytes()
