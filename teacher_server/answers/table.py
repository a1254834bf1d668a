"""The answers of all callers: a row is asked for once, computed once, remembered.

A row is what the model computes in one go and what is worth remembering: a context with the candidates of its
scored places.

    END     a window and the candidates of the cell after it (WINDOW, SEQUENCE with a window)
    CAUSAL  a trip and the candidates after each of its tokens (SEQUENCE with the whole history)

One table does two things. It deduplicates what is in flight (single-flight, or coalescing): a row that repeats
within a request, or that another caller waits for, is computed once. It is the cache of what was answered: exact keys,
bounded memory, least recently used (LRU) first to go.

    ask:  absent -> QUEUED (a miss)    QUEUED, RUNNING -> wait for it    DONE -> the answer, bit for bit (a hit)

    QUEUED --take--> RUNNING --fill--> DONE --evicted--> gone
       `--release (nobody waits) --> gone  `--fail--> FAILED --release--> gone

Rows are found by a 64-bit hash and compared in full: a collision costs time, never an answer. A row that somebody
waits for is never evicted.

Memory: blocks of 64 bytes, chained; a row is its key and its answer back to back in as many as it needs. The hot
path is compiled (`compiled.py`), one call a request or batch. All methods belong to one thread.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shared.arrays import Float16, Int32, Int64
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.answers import compiled
from teacher_server.answers.compiled import (
    ANSWERED,
    BLOCK_BYTES,
    BLOCK_WORDS,
    BUDGET,
    DONE,
    EVICTED,
    FRESH,
    HITS,
    MISSES,
    PINNED,
    ROWS,
    SEED,
    SOT,
    SPAN,
    USED,
    WAITS,
    BatchArrays,
    Kept,
    Request,
    Room,
    Rows,
    Table,
)
from teacher_server.scorer import Batch, Scores

LEAST_BLOCKS = 1024
"""Blocks that a table starts with at least."""


@dataclasses.dataclass(eq=False)
class PendingAnswer:
    """A request's rows, and its answer as far as it is known.

    Attributes:
        rows: where each row is, or ANSWERED, and its part of the answer.
        log_probs: float16 [K].
        candidate_mass: float16 [P], 0 for positions without candidates; None if it was not asked for.
        open_positions: scored positions that were not answered at once.
        cost: padded tokens of the rows that were new.
        collected: rows from the start on that are answered.
        taken: rows from the start on that need not be looked at for a batch any more.
    """

    rows: Rows
    log_probs: Float16
    candidate_mass: Float16 | None
    open_positions: int
    cost: int
    collected: int = 0
    taken: int = 0

    @property
    def slots(self) -> Int64:
        """Where each row is: int64 [n]."""
        return self.rows.slots

    @property
    def candidates(self) -> int:
        """Number of candidates, K."""
        return len(self.log_probs)

    @property
    def is_answered(self) -> bool:
        """Whether every row has its answer."""
        return self.collected == len(self.slots)


class AnswerTable:
    """See the module. Sizes are in blocks inside, in bytes and rows outside."""

    def __init__(self, cache_bytes: int, costs: Int64, sot: int, seed: int | None = None) -> None:
        """An empty table.

        Args:
            cache_bytes: of remembered rows and rows in flight together; while those in flight alone need more, it
                grows, and forgets all else. 0: nothing is remembered.
            costs: int64 [block size + 1], padded tokens of a context by its length with SOT.
            sot: the token that every context starts with.
            seed: of the hash; by default nobody knows it.
        """
        budget = cache_bytes // BLOCK_BYTES
        self._longest = len(costs) - 2
        self._table = Table.empty(max(budget, LEAST_BLOCKS), costs)
        self._table.counters[[SEED, BUDGET, SOT]] = secrets.randbits(62) if seed is None else seed, budget, sot

    @property
    def rows(self) -> int:
        """Rows in the table, in flight and remembered."""
        return int(self._table.counters[ROWS])

    @property
    def bytes(self) -> int:
        """Memory of these."""
        return int(self._table.counters[USED]) * BLOCK_BYTES

    @property
    def limit(self) -> int:
        """Memory that they may have; those in flight may need more."""
        return int(self._table.counters[BUDGET]) * BLOCK_BYTES

    @property
    def evictions(self) -> int:
        """Remembered rows that made way since the start."""
        return int(self._table.counters[EVICTED])

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Scored positions asked since the start: answered at once, found in flight, new."""
        counters = self._table.counters
        return int(counters[HITS]), int(counters[WAITS]), int(counters[MISSES])

    def ask(self, query: ScoreQuery) -> PendingAnswer:
        """Looks up a checked request's rows: copies the known answers, joins what is in flight, queues the rest."""
        positions, with_mass = query.positions, query.include_candidate_mass
        self._make_room(query)
        log_probs, mass = np.empty(len(query.candidate_tokens), np.float16), np.zeros(positions * with_mass, np.float16)
        slots, first_candidate, first_position = np.empty((3, positions), np.int64)
        rows = Rows(slots, first_candidate, first_position, log_probs.view(np.uint16), mass.view(np.uint16))
        spans, request = np.empty((positions, SPAN), np.int64), _request(query)
        count, longest_key = compiled.split(request, self._longest, rows, spans)
        room = Room.of(count, longest_key)
        open_positions, cost = compiled.ask(self._table, request, rows, spans, count, room)
        if count < positions:
            rows = Rows(slots[:count], first_candidate[:count], first_position[:count], rows.log_probs, rows.mass)
        return PendingAnswer(
            rows=rows,
            log_probs=log_probs,
            candidate_mass=mass if with_mass else None,
            open_positions=open_positions,
            cost=cost,
            collected=int(np.argmax(rows.slots != ANSWERED)) if open_positions else count,
        )

    def take(self, pending: PendingAnswer, tokens: int, into: Int64, count: int) -> tuple[int, int]:
        """Starts rows of a request that are still queued, as many as fit.

        Args:
            pending: the request.
            tokens: padded tokens that they may have; if `count` is 0 the first may have more.
            into: int64, receives their slots from `count` on.
            count: slots there already.

        Returns:
            The slots there now, and the padded tokens of those added.
        """
        pending.taken, count, spent = compiled.take(self._table, pending.slots, pending.taken, tokens, into, count)
        return count, spent

    def batch(self, slots: Int64) -> Batch:
        """What to compute for rows that were taken."""
        tokens, places, candidates = compiled.sizes(self._table, slots)
        arrays = BatchArrays(
            tokens=np.empty(tokens, np.int32),
            lengths=np.empty(len(slots), np.int64),
            scored_row=np.empty(places, np.int64),
            scored_place=np.empty(places, np.int64),
            candidates=np.empty(candidates, np.int32),
            candidate_lengths=np.empty(places, np.int64),
            with_mass=np.empty(places, np.bool_),
        )
        compiled.read(self._table, slots, arrays)
        return Batch(**arrays._asdict())

    def fill(self, slots: Int64, scores: Scores) -> None:
        """Gives rows that were taken their answers, laid out as in their batch."""
        log_probs, mass = scores.log_probs.view(np.uint16), scores.candidate_mass.view(np.uint16)
        compiled.fill(self._table, slots, log_probs, mass)

    def fail(self, slots: Int64) -> None:
        """Gives rows that were taken up; who asks for them again, asks anew."""
        compiled.fail(self._table, slots)

    def moved(self, slots: Int64) -> npt.NDArray[np.bool_]:
        """Which of these rows are no longer queued or running: bool [n]."""
        return self._table.state[slots] >= DONE

    def collect(self, pending: PendingAnswer) -> bool:
        """Copies the answers that have come, in order; False if one of the request's rows has failed."""
        pending.collected, is_good = compiled.collect(self._table, pending.rows, pending.collected)
        return bool(is_good)

    def release(self, pending: PendingAnswer) -> None:
        """Stops waiting for a request's rows; idempotent. Rows that nobody else waits for are not computed."""
        compiled.release(self._table, pending.slots, pending.collected)
        pending.collected = len(pending.slots)

    def keep(self) -> Kept:
        """The remembered rows, least recently used first."""
        kept = _room_for(compiled.kept_sizes(self._table))
        compiled.keep(self._table, kept)
        return kept

    def keep_in_parts(self, blocks: int) -> Iterator[Kept]:
        """The answered rows, part by part, in no order of use: a part is taken when it is asked for, and the table may
        change in between. Then a row may be in two parts, and one that has come or gone meanwhile in none.

        Args:
            blocks: that are looked at for a part, which bounds its size and how long it takes.
        """
        first = 0
        while first < (used := int(self._table.counters[FRESH])):
            last = min(first + blocks, used)
            kept = _room_for(compiled.kept_sizes_between(self._table, first, last))
            compiled.keep_between(self._table, first, last, kept)
            yield kept
            first = last

    def restore(self, kept: Kept) -> None:
        """Remembers rows again, the most recently used ones if not all fit; none of them is in the table.

        Raises:
            ValueError: they are not well-formed.
        """
        sizes = (kept.key_words, kept.words), (kept.value_halves, kept.halves)
        for lengths, values in sizes:
            total = lengths.sum(dtype=np.int64)
            if len(lengths) != len(kept.key_words) or np.any(lengths <= 0) or total != len(values):
                raise ValueError("rows that are not well-formed: their sizes do not add up")
        blocks = -(-(kept.key_words + (kept.value_halves + 1) // 2) // BLOCK_WORDS)
        fits = np.cumsum(blocks[::-1].astype(np.int64))[::-1] <= self._table.counters[BUDGET]
        if not compiled.restore(self._table, kept, fits):
            raise ValueError("rows that are not well-formed")

    def _make_room(self, query: ScoreQuery) -> None:
        """Grows the table if a request's rows might not fit beside the other ones in flight."""
        table, positions = self._table, query.positions
        longest = int(query.history_lengths.max(initial=0))
        if query.mode is HistoryMode.SEQUENCE:
            longest = query.window or min(longest, self._longest)
        words = positions * (2 + longest) + 2 * len(query.candidate_tokens)
        if query.mode is HistoryMode.SEQUENCE and not query.window:
            beyond = int(np.maximum(query.history_lengths.astype(np.int64) - self._longest, 0).sum())
            words = beyond * (2 + self._longest) + 4 * positions + 2 * len(query.candidate_tokens)
        needed = int(table.counters[PINNED]) + words // BLOCK_WORDS + positions
        if needed > len(table.words):
            self._table = compiled.grown(table, max(needed, 2 * len(table.words)))


def _room_for(sizes: tuple[int, int, int]) -> Kept:
    """Arrays for so many rows, words of their keys and halves of their answers."""
    rows, key_words, value_halves = sizes
    return Kept(
        key_words=np.empty(rows, np.int32),
        value_halves=np.empty(rows, np.int32),
        words=np.empty(key_words, np.int32),
        halves=np.empty(value_halves, np.uint16),
    )


def _request(query: ScoreQuery) -> Request:
    return Request(
        is_window=query.mode is HistoryMode.WINDOW,
        window=query.window,
        with_mass=query.include_candidate_mass,
        history_tokens=_read_only(query.history_tokens),
        history_lengths=_read_only(query.history_lengths),
        candidate_tokens=_read_only(query.candidate_tokens),
        candidate_lengths=_read_only(query.candidate_lengths),
    )


def _read_only(array: Int32) -> Int32:
    """As decoded messages are: numba compiles anew for arrays that may be written."""
    view = array.view(np.ndarray)  # of a memory map, too
    view.flags.writeable = False
    return view


def warm_up(like: AnswerTable) -> None:
    """Compiles what a table does, on another one, so that the first request does not wait for it: seconds, once a
    machine."""
    table = AnswerTable(BLOCK_BYTES, like._table.costs, int(like._table.counters[SOT]))
    into = np.empty(2, np.int64)
    for token in (0, 1, 1):
        one = np.array([token], np.int32)
        query = ScoreQuery(HistoryMode.WINDOW, one, np.ones(1, np.int32), one, np.ones(1, np.int32))
        pending = table.ask(query)
        count, _ = table.take(pending, 1, into, 0)
        slots = into[:count].copy()
        batch = table.batch(slots)
        scores = Scores(np.zeros(len(batch.candidates), np.float16), np.zeros(len(batch.scored_row), np.float16))
        table.fill(slots, scores)
        table.collect(pending)
    failing = table.ask(dataclasses.replace(query, history_tokens=np.array([2], np.int32)))
    count, _ = table.take(failing, 1, into, 0)
    table.fail(into[:count].copy())
    table.release(failing)
    table.restore(table.keep())
    for kept in table.keep_in_parts(LEAST_BLOCKS):
        table.restore(kept)
