"""The rows of all callers: asked once, computed once, remembered.

A row is what the model computes in one go and what is worth remembering: a context with the candidates of its
scored places.

    END     a window and the candidates of the cell after it (WINDOW, SEQUENCE with a window)
    CAUSAL  a trip and the candidates after each of its tokens (SEQUENCE with the whole history)

One table holds the rows that wait, the rows that are computed and, least recently used first to go, the answers of
earlier ones. So a row that repeats within a request, or that another caller has asked and still waits for, or that
was answered before, is found in one and the same way.

    ask:  absent -> QUEUED (a miss)    QUEUED, RUNNING -> wait for it    DONE -> the answer, bit for bit

    QUEUED --take--> RUNNING --fill--> DONE --evicted--> gone
       `--release (nobody waits) --> gone  `--fail--> FAILED --release--> gone

Rows are found by a 64-bit hash and always compared in full: a collision costs time, never an answer. A row that
somebody waits for is never evicted.

Memory: blocks of 64 bytes, chained; a row is its key and its answer back to back in as many as it needs. The hot
path is compiled (numba), one call a request or batch, and nothing in it is visited by the interpreter row by row.
All methods belong to one thread.
"""

from __future__ import annotations

import dataclasses
import secrets

import numpy as np
import numpy.typing as npt

from shared.wire import Float16, HistoryMode, ScoreQuery
from teacher_server import row_table
from teacher_server.row_table import (
    ANSWERED,
    BLOCK_BYTES,
    BLOCK_WORDS,
    DONE,
    EVICTED,
    HITS,
    MISSES,
    PINNED,
    ROWS,
    USED,
    WAITS,
    Table,
)
from teacher_server.scorer import Batch, Scores

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]


@dataclasses.dataclass(eq=False)
class Asked:
    """A request's rows, and its answer as far as it is known.

    Attributes:
        slots: int64 [n], ANSWERED or where the row is.
        first_candidate, first_position: int64 [n], where the row's answer goes.
        log_probs: float16 [K].
        candidate_mass: float16 [P], 0 for positions without candidates; None if it was not asked for.
        open_positions: scored positions that were not answered at once.
        cost: padded tokens of the rows that were new.
        collected: rows from the start on that are answered.
        taken: rows from the start on that need not be looked at for a batch any more.
    """

    slots: Int64
    first_candidate: Int64
    first_position: Int64
    log_probs: Float16
    candidate_mass: Float16 | None
    open_positions: int
    cost: int
    collected: int = 0
    taken: int = 0

    @property
    def candidates(self) -> int:
        """Number of candidates, K."""
        return len(self.log_probs)

    @property
    def is_answered(self) -> bool:
        """Whether every row has its answer."""
        return self.collected == len(self.slots)


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Remembered rows as a file keeps them, least recently used first.

    Attributes:
        key_words, value_halves: int32 [n], sizes of each.
        words: int32 [sum of key_words], keys back to back.
        halves: uint16 [sum of value_halves], bits of float16, back to back.
    """

    key_words: Int32
    value_halves: Int32
    words: Int32
    halves: UInt16


class RowTable:
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
        self._budget = cache_bytes // BLOCK_BYTES
        self._costs = costs
        self._longest = len(costs) - 2
        self._sot = sot
        seed = secrets.randbits(62) if seed is None else seed
        self._table = Table.empty(max(self._budget, 1024), seed)

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
        return self._budget * BLOCK_BYTES

    @property
    def evictions(self) -> int:
        """Remembered rows that made way since the start."""
        return int(self._table.counters[EVICTED])

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Scored positions asked since the start: answered at once, found in flight, new."""
        counters = self._table.counters
        return int(counters[HITS]), int(counters[WAITS]), int(counters[MISSES])

    def ask(self, query: ScoreQuery) -> Asked:
        """Looks up a checked request's rows: copies the known answers, joins what is in flight, queues the rest."""
        positions, candidates = query.positions, len(query.candidate_tokens)
        self._make_room(query)
        slots, first_candidate, first_position = np.empty((3, positions), np.int64)
        log_probs = np.empty(candidates, np.float16)
        mass = np.zeros(positions, np.float16)
        key = np.empty(1 + 2 * len(query.history_tokens) + candidates, np.int32)
        rows, open_positions, cost = row_table.ask(
            self._table,
            query.mode is HistoryMode.WINDOW,
            query.window,
            query.include_candidate_mass,
            self._longest,
            _read_only(query.history_tokens),
            _read_only(query.history_lengths),
            _read_only(query.candidate_tokens),
            _read_only(query.candidate_lengths),
            self._costs,
            slots,
            first_candidate,
            first_position,
            log_probs.view(np.uint16),
            mass.view(np.uint16),
            key,
        )
        return Asked(
            slots[:rows], first_candidate[:rows], first_position[:rows], log_probs,
            mass if query.include_candidate_mass else None, open_positions, cost,
            collected=int(np.argmax(slots[:rows] != ANSWERED)) if open_positions else rows,
        )  # fmt: skip

    def take(self, asked: Asked, tokens: int, into: Int64, count: int) -> tuple[int, int]:
        """Starts rows of a request that are still queued, as many as fit.

        Args:
            asked: the request.
            tokens: padded tokens that they may have; if `count` is 0 the first may have more.
            into: int64, receives their slots from `count` on.
            count: slots there already.

        Returns:
            The slots there now, and the padded tokens of those added.
        """
        asked.taken, count, spent = row_table.take(
            self._table, asked.slots, asked.taken, tokens, self._costs, into, count
        )
        return count, spent

    def batch(self, slots: Int64) -> Batch:
        """What to compute for rows that were taken."""
        sizes = row_table.sizes(self._table, slots)
        tokens, places, candidates = sizes.tolist()
        batch = Batch(
            tokens=np.empty(tokens, np.int32),
            lengths=np.empty(len(slots), np.int64),
            scored_row=np.empty(places, np.int64),
            scored_place=np.empty(places, np.int64),
            candidates=np.empty(candidates, np.int32),
            candidate_lengths=np.empty(places, np.int64),
            with_mass=np.empty(places, np.bool_),
        )
        row_table.read(self._table, slots, self._sot, *vars(batch).values())
        return batch

    def fill(self, slots: Int64, scores: Scores) -> None:
        """Gives rows that were taken their answers, laid out as in their batch."""
        log_probs, mass = scores.log_probs.view(np.uint16), scores.candidate_mass.view(np.uint16)
        row_table.fill(self._table, slots, log_probs, mass, self._budget)

    def fail(self, slots: Int64) -> None:
        """Gives rows that were taken up; who asks for them again, asks anew."""
        row_table.fail(self._table, slots)

    def moved(self, slots: Int64) -> npt.NDArray[np.bool_]:
        """Which of these rows are no longer queued or running: bool [n]."""
        return self._table.state[slots] >= DONE

    def collect(self, asked: Asked) -> bool:
        """Copies the answers that have come, in order; False if one of the request's rows has failed."""
        mass = np.zeros(0, np.float16) if asked.candidate_mass is None else asked.candidate_mass
        asked.collected, is_good = row_table.collect(
            self._table, asked.slots, asked.collected, asked.first_candidate, asked.first_position,
            asked.log_probs.view(np.uint16), mass.view(np.uint16), self._budget,
        )  # fmt: skip
        return bool(is_good)

    def release(self, asked: Asked) -> None:
        """Waits no more for a request's rows; those that nobody else waits for are not computed."""
        row_table.release(self._table, asked.slots, asked.collected, self._budget)
        asked.collected = len(asked.slots)

    def keep(self) -> Kept:
        """The remembered rows."""
        rows, key_words, value_halves = row_table.kept_sizes(self._table)
        kept = Kept(
            np.empty(rows, np.int32),
            np.empty(rows, np.int32),
            np.empty(key_words, np.int32),
            np.empty(value_halves, np.uint16),
        )
        row_table.keep(self._table, *vars(kept).values())
        return kept

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
        fits = np.cumsum(blocks[::-1].astype(np.int64))[::-1] <= self._budget
        if not row_table.restore(self._table, fits, self._longest, *vars(kept).values()):
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
            self._table = row_table.grown(table, max(needed, 2 * len(table.words)))


def _read_only(array: Int32) -> Int32:
    """As decoded messages are: numba compiles anew for arrays that may be written."""
    view = array.view(np.ndarray)  # of a memory map, too
    view.flags.writeable = False
    return view


def warm_up(like: RowTable) -> None:
    """Compiles what a table does, on another one, so that the first request does not wait for it: seconds, once a
    machine."""
    table = RowTable(BLOCK_BYTES, like._costs, like._sot)
    into = np.empty(2, np.int64)
    for token in (0, 1, 1):
        one = np.array([token], np.int32)
        query = ScoreQuery(HistoryMode.WINDOW, one, np.ones(1, np.int32), one, np.ones(1, np.int32))
        asked = table.ask(query)
        count, _ = table.take(asked, 1, into, 0)
        slots = into[:count].copy()
        batch = table.batch(slots)
        scores = Scores(np.zeros(len(batch.candidates), np.float16), np.zeros(len(batch.scored_row), np.float16))
        table.fill(slots, scores)
        table.collect(asked)
    failing = table.ask(dataclasses.replace(query, history_tokens=np.array([2], np.int32)))
    count, _ = table.take(failing, 1, into, 0)
    table.fail(into[:count].copy())
    table.release(failing)
    table.restore(table.keep())
