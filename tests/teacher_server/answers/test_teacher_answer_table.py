"""The rows of all callers: asked once, computed once, remembered exactly, and forgotten in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_fakes import answers, expected, make_query, same

from shared.wire import HistoryMode, ScoreQuery
from teacher_server.answers.compiled import BLOCK_BYTES, BLOCK_WORDS, MASS_FLAG, PINNED, USED, Kept
from teacher_server.answers.table import AnswerTable, PendingAnswer

WINDOW, SEQUENCE = HistoryMode.WINDOW, HistoryMode.SEQUENCE
SOT = 99
BLOCK_SIZE = 6
LONGEST = BLOCK_SIZE - 1
COSTS = np.arange(BLOCK_SIZE + 1, dtype=np.int64)
PLENTY = 10**6


def make_table(blocks: int = 10_000) -> AnswerTable:
    return AnswerTable(blocks * BLOCK_BYTES, COSTS, SOT)


def compute(table: AnswerTable, *requests: PendingAnswer, tokens: int = PLENTY) -> list[int]:
    """Computes what is queued of the requests, in batches; returns the rows of each batch."""
    sizes: list[int] = []
    into = np.empty(PLENTY, np.int64)
    while True:
        count = spent = 0
        for asked in requests:
            count, more = table.take(asked, tokens - spent, into, count)
            spent += more
        if not count:
            return sizes
        slots = into[:count].copy()
        table.fill(slots, answers(table.batch(slots)))
        sizes.append(count)


def answer(table: AnswerTable, query: ScoreQuery) -> PendingAnswer:
    asked = table.ask(query)
    compute(table, asked)
    assert table.collect(asked) and asked.is_answered
    return asked


def is_right(asked: PendingAnswer, query: ScoreQuery) -> bool:
    log_probs, mass = expected(query, LONGEST)
    good = np.array_equal(asked.log_probs, log_probs)
    if query.include_candidate_mass:
        return good and asked.candidate_mass is not None and np.array_equal(asked.candidate_mass, mass)
    return good and asked.candidate_mass is None


cells = st.lists(st.integers(0, 3), min_size=0, max_size=4)


@st.composite
def queries(draw: Any) -> ScoreQuery:
    """Few tokens, so that rows repeat; long trips, so that rows span blocks and exceed the model's."""
    mode = draw(st.sampled_from([WINDOW, SEQUENCE]))
    longest = LONGEST if mode is WINDOW else 9
    histories = draw(st.lists(st.lists(st.integers(0, 2), max_size=longest), max_size=6))
    positions = len(histories) if mode is WINDOW else sum(map(len, histories))
    candidates = draw(st.lists(cells, min_size=positions, max_size=positions))
    window = draw(st.integers(0, LONGEST)) if mode is SEQUENCE else 0
    return make_query(mode, histories, candidates, window=window, include_candidate_mass=draw(st.booleans()))


@settings(max_examples=300, deadline=None)
@given(st.lists(queries(), max_size=6), st.sampled_from([0, 3, 20, 10_000]))
def test_answers_are_those_of_each_context_by_itself(asked: list[ScoreQuery], blocks: int) -> None:
    table = make_table(blocks)
    for query in asked:
        assert is_right(answer(table, query), query)
    assert table._table.counters[PINNED] == 0
    assert table.bytes <= blocks * BLOCK_BYTES
    assert blocks or not table.rows


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([0, 5, 10_000]))
def test_any_interleaving_of_callers_ends_right_and_leaves_nothing_behind(data: st.DataObject, blocks: int) -> None:
    table = make_table(blocks)
    live: list[tuple[ScoreQuery, PendingAnswer]] = []
    running: list[np.ndarray] = []
    for _ in range(data.draw(st.integers(0, 25))):
        step = data.draw(st.sampled_from(["ask", "take", "fill", "fail", "leave", "collect"]))
        if step == "ask":
            query = data.draw(queries())
            live.append((query, table.ask(query)))
        elif step == "take" and live:
            into = np.empty(100, np.int64)
            count, _ = table.take(data.draw(st.sampled_from(live))[1], data.draw(st.integers(1, 20)), into, 0)
            running += [into[:count].copy()] if count else []
        elif step == "fill" and running:
            slots = running.pop(0)
            table.fill(slots, answers(table.batch(slots)))
        elif step == "fail" and running:
            table.fail(running.pop(0))
        elif step == "leave" and live:
            table.release(live.pop(data.draw(st.integers(0, len(live) - 1)))[1])
        elif step == "collect" and live:
            query, asked = data.draw(st.sampled_from(live))
            if not table.collect(asked):
                table.release(asked)
                live = [entry for entry in live if entry[1] is not asked]
    for slots in running:
        table.fill(slots, answers(table.batch(slots)))
    for query, asked in live:
        compute(table, asked)
        if table.collect(asked):
            assert asked.is_answered and is_right(asked, query)
        else:
            table.release(asked)
    assert table._table.counters[PINNED] == 0
    assert table.bytes <= blocks * BLOCK_BYTES
    fresh = data.draw(queries())
    assert is_right(answer(table, fresh), fresh)


def windows(*tokens: int, candidates: list[int] | None = None, **values: Any) -> ScoreQuery:
    return make_query(WINDOW, [[token] for token in tokens], [candidates or [1, 2]] * len(tokens), **values)


def test_equal_rows_are_computed_once_within_a_request() -> None:
    table = make_table()
    asked = table.ask(windows(1, 1, 2, 1))
    assert compute(table, asked) == [2]
    assert table.outcomes == (0, 2, 2)


def test_a_caller_waits_for_a_row_that_another_one_runs() -> None:
    table, into = make_table(), np.empty(10, np.int64)
    first = table.ask(windows(1, 2))
    count, _ = table.take(first, PLENTY, into, 0)
    second = table.ask(windows(2, 1))
    assert table.take(second, PLENTY, np.empty(10, np.int64), 0) == (0, 0)
    assert table.collect(second) and not second.is_answered
    table.fill(into[:count], answers(table.batch(into[:count])))
    assert table.collect(second) and second.is_answered and is_right(second, windows(2, 1))
    assert table.collect(first) and is_right(first, windows(1, 2))
    assert table.outcomes == (0, 2, 2)


def test_a_row_that_two_callers_queued_survives_the_first_one_leaving() -> None:
    table = make_table()
    first, second = table.ask(windows(1, 2)), table.ask(windows(1))
    table.release(first)
    assert table.rows == 1
    assert compute(table, second) == [1]


def test_a_remembered_row_is_answered_at_once() -> None:
    table = make_table()
    answer(table, windows(1, 2))
    asked = table.ask(windows(2, 1, 1))
    assert asked.is_answered and asked.open_positions == 0 and asked.cost == 0
    assert table.outcomes == (3, 0, 2)


@pytest.mark.parametrize("other", [windows(1, candidates=[2, 1]), windows(1, candidates=[1]), windows(2)])
def test_other_candidates_and_other_contexts_are_other_rows(other: ScoreQuery) -> None:
    table = make_table()
    answer(table, windows(1))
    assert not table.ask(other).is_answered


def test_context_and_candidates_are_not_confused() -> None:
    table = make_table()
    answer(table, make_query(WINDOW, [[1, 2]], [[3]]))
    assert not table.ask(make_query(WINDOW, [[1]], [[2, 3]])).is_answered


def test_masses_are_remembered_for_those_who_ask() -> None:
    table = make_table()
    answer(table, windows(1))
    asked = table.ask(windows(1, include_candidate_mass=True))
    assert not asked.is_answered
    compute(table, asked)
    table.collect(asked)
    assert is_right(table.ask(windows(1, include_candidate_mass=True)), windows(1, include_candidate_mass=True))


def test_the_least_recently_used_row_makes_way() -> None:
    table = make_table(3)  # three rows of one block
    for token in (1, 2, 3):
        answer(table, windows(token))
    assert table.ask(windows(1)).is_answered  # 2 is the oldest now
    answer(table, windows(4))
    assert table.evictions == 1
    assert [table.ask(windows(token)).is_answered for token in (1, 3, 4)] == [True] * 3
    late = table.ask(windows(2))
    assert not late.is_answered
    table.release(late)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1100, 1500]))
def test_large_requests_hit_and_forget_as_if_rows_came_one_by_one(seed: int, blocks: int) -> None:
    """Rows of one block, more of them than are looked up together; new ones evict others of the same request."""
    random = np.random.default_rng(seed)
    table, remembered = make_table(blocks), dict[int, None]()  # least recently used first
    for _ in range(8):
        tokens = random.integers(2000, size=random.integers(600)).tolist()
        new, hits, waits = dict[int, None](), 0, 0
        for token in tokens:
            if token in remembered:
                del remembered[token]
                remembered[token] = None
                hits += 1
            elif token in new:
                waits += 1
            else:
                new[token] = None
                if len(remembered) + len(new) > blocks:
                    del remembered[next(iter(remembered))]
        before = table.outcomes
        asked = answer(table, windows(*tokens))
        assert is_right(asked, windows(*tokens))
        assert np.subtract(table.outcomes, before).tolist() == [hits, waits, len(new)]
        for token in new:
            # An answer is copied out where its row occurs last; until then somebody waits for it.
            remembered[token] = None
        last = {token: i for i, token in enumerate(tokens) if token in new}
        for token in sorted(last, key=last.__getitem__):
            del remembered[token]
            remembered[token] = None
        while len(remembered) > blocks:
            del remembered[next(iter(remembered))]
        assert table.keep().words.reshape(-1, 4)[:, 1].tolist() == list(remembered)


def test_rows_in_flight_may_exceed_the_cache_and_are_forgotten_after() -> None:
    table = make_table(0)
    query = make_query(WINDOW, [[i // 100, i % 100] for i in range(5000)], [[1, 2]] * 5000)
    asked = table.ask(query)
    compute(table, asked)
    assert table.rows == 5000
    assert table.collect(asked) and is_right(asked, query)
    assert table.rows == 0 and table.bytes == 0


def test_a_failed_row_fails_those_who_wait_and_is_asked_anew() -> None:
    table, into = make_table(), np.empty(10, np.int64)
    asked = table.ask(windows(1))
    count, _ = table.take(asked, PLENTY, into, 0)
    table.fail(into[:count])
    again = table.ask(windows(1))
    assert not table.collect(asked)
    table.release(asked)
    assert compute(table, again) == [1]
    assert table.collect(again) and is_right(again, windows(1))


def test_take_keeps_to_its_tokens_but_takes_one() -> None:
    table, into = make_table(), np.empty(10, np.int64)
    asked = table.ask(windows(1, 2, 3))
    assert table.take(asked, 4, into, 0) == (2, 4)  # contexts of two tokens
    assert table.take(asked, 1, into, 2) == (2, 0)
    assert table.take(asked, 1, into, 0) == (1, 2)


def test_a_collision_of_hashes_costs_time_not_an_answer() -> None:
    """With a known seed two keys with one hash can be found: the second word makes up for the first."""
    table = AnswerTable(10_000 * BLOCK_BYTES, COSTS, SOT, seed=0)
    first, second = colliding_windows()
    answer(table, first)
    asked = table.ask(second)
    assert not asked.is_answered
    compute(table, asked)
    table.collect(asked)
    hashes = table._table.hashes[table._table.heads[table._table.heads > 0] - 1]
    assert len(hashes) == 2 and hashes[0] == hashes[1]
    assert is_right(table.ask(first), first) and is_right(table.ask(second), second)


def colliding_windows() -> tuple[ScoreQuery, ScoreQuery]:
    """Contexts [a, b, 0] and [c, d, x] with the same hash: those of [a, b] and [c, d] agree in the upper 32 bits."""
    tokens = np.random.default_rng(0).integers(1 << 31, size=(2, 300_000), dtype=np.uint64)
    state = np.full_like(tokens[0], 5)  # seed 0, five words
    for word in (np.full_like(tokens[0], 3 << 2), *tokens):
        state = (state ^ word) * np.uint64(0x9E3779B97F4A7C15)
        state = state ^ (state >> np.uint64(29))
    order = np.argsort(state >> np.uint64(32))
    for i in np.flatnonzero(np.diff((state[order] >> np.uint64(32)).astype(np.int64)) == 0):
        one, other = order[i], order[i + 1]
        difference = int(state[one] ^ state[other])
        if difference < 1 << 31:
            contexts = ([*tokens[:, one].tolist(), 0], [*tokens[:, other].tolist(), difference])
            return make_query(WINDOW, [contexts[0]], [[1]]), make_query(WINDOW, [contexts[1]], [[1]])
    raise AssertionError("no two of the hashes agree in 32 bits")


@settings(max_examples=100, deadline=None)
@given(st.lists(queries(), max_size=5))
def test_kept_rows_come_back_in_their_order(asked: list[ScoreQuery]) -> None:
    table = make_table()
    for query in asked:
        answer(table, query)
    kept = table.keep()
    restored = make_table()
    restored.restore(kept)
    assert restored.rows == table.rows
    assert same(kept, restored.keep())
    for query in asked:
        again = restored.ask(query)
        assert again.is_answered and is_right(again, query)


@settings(max_examples=100, deadline=None)
@given(st.lists(queries(), max_size=5), st.integers(1, 7), st.booleans())
def test_rows_kept_in_parts_come_back(asked: list[ScoreQuery], blocks: int, is_small: bool) -> None:
    """Also while rows are added, forgotten and moved to a larger table between two parts."""
    table, restored = make_table(4 if is_small else 10_000), make_table()
    for query in asked[:3]:
        answer(table, query)
    before = [query for query in asked[:3] if table.ask(query).is_answered]
    for i, part in enumerate(table.keep_in_parts(blocks)):
        restored.restore(part)
        if 3 + i < len(asked):
            answer(table, asked[3 + i])
    for query in asked:
        again = restored.ask(query)
        assert not again.is_answered or is_right(again, query)
    if not is_small:  # nothing had to go
        assert all(restored.ask(query).is_answered for query in before)


def test_a_smaller_table_takes_the_rows_used_last() -> None:
    table = make_table()
    for token in (1, 2, 3):
        answer(table, windows(token))
    smaller = make_table(2)
    smaller.restore(table.keep())
    assert [smaller.ask(windows(token)).is_answered for token in (2, 3)] == [True] * 2
    assert not smaller.ask(windows(1)).is_answered


def kept_row(key: list[int], halves: int) -> Kept:
    return Kept(
        np.array([len(key)], np.int32),
        np.array([halves], np.int32),
        np.array(key, np.int32),
        np.zeros(halves, np.uint16),
    )


@pytest.mark.parametrize(
    ("key", "halves"),
    [
        ([4, 1], 1),  # no candidate
        ([4, 1, 2], 2),  # one candidate, two answers
        ([4 | MASS_FLAG, 1, 2], 1),  # a mass is missing
        ([(BLOCK_SIZE << 2), *range(7), 1], 1),  # longer than the block
        ([-4, 1, 2], 1),
        ([5, 1, -1, 2], 1),
        ([5, 1, 2, 2], 1),  # two candidates promised
        ([1, 2], 1),  # a trip without tokens
    ],
)
def test_malformed_rows_are_refused(key: list[int], halves: int) -> None:
    with pytest.raises(ValueError, match="well-formed"):
        make_table().restore(kept_row(key, halves))


def test_sizes_that_do_not_add_up_are_refused() -> None:
    good = kept_row([4, 1, 2], 1)
    make_table().restore(good)
    for sizes in ([4], [-3], [2**31 - 1]):
        with pytest.raises(ValueError, match="well-formed"):
            make_table().restore(Kept(np.array(sizes, np.int32), good.value_halves, good.words, good.halves))
    with pytest.raises(ValueError, match="well-formed"):
        make_table().restore(Kept(good.key_words, np.array([2], np.int32), good.words, good.halves))


def test_a_trip_is_one_row_until_the_block_is_full() -> None:
    table, into = make_table(), np.empty(10, np.int64)
    asked = table.ask(make_query(SEQUENCE, [list(range(8))], [[1]] * 8))
    count, _ = table.take(asked, PLENTY, into, 0)
    batch = table.batch(into[:count].copy())
    assert batch.lengths.tolist() == [6, 6, 6, 6]
    assert batch.scored_row.tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert batch.scored_place.tolist() == [1, 2, 3, 4, 5, 5, 5, 5]
    assert batch.tokens[6:].tolist() == [SOT, 1, 2, 3, 4, 5, SOT, 2, 3, 4, 5, 6, SOT, 3, 4, 5, 6, 7]


def test_long_rows_span_blocks() -> None:
    table = AnswerTable(PLENTY, np.arange(202, dtype=np.int64), SOT)
    trips = [list(range(150)), list(range(150)), list(range(1, 200))]
    query = make_query(SEQUENCE, trips, [[1, 2, 3]] * 499, include_candidate_mass=True)
    asked = table.ask(query)
    assert len(asked.slots) == 3 and asked.open_positions == 499
    assert compute(table, asked) == [2]
    assert table.collect(asked)
    log_probs, mass = expected(query, 200)
    assert asked.candidate_mass is not None
    assert np.array_equal(asked.log_probs, log_probs) and np.array_equal(asked.candidate_mass, mass)
    assert table._table.counters[USED] >= 2 * (150 * 2 + 450) // BLOCK_WORDS
