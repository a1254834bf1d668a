"""The compiled half of `table.py`: what happens to each row, without the interpreter.

A table is a tuple of arrays, and functions that numba compiles change them in place. Sizes are in blocks, words
(int32) and halves (uint16, the bits of a float16).

All of it is one file, long as it is, because it is one data structure: every function keeps the invariants of the
same arrays, and nothing outside touches them. What is compiled would follow changes in other files (`shared.compiled`).

Arrays that belong together travel as named tuples, so that no two of them can change places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.arrays import Int32, Int64, UInt16
from shared.compiled import compiled_in_place

BLOCK_WORDS = 16
"""int32 words of a block."""
BLOCK_HALVES = 2 * BLOCK_WORDS
QUEUED, RUNNING, DONE, FAILED = 1, 2, 3, 4
ANSWERED = -1
"""In place of the slot of a row whose answer has been copied out."""
CAUSAL_FLAG, MASS_FLAG, LENGTH_SHIFT = 1, 2, 2
"""The first word of a key: two flags, then the tokens of the context without SOT."""
FRESH, FREE, USED, PINNED, ROWS, NEWEST, OLDEST, EVICTED, HITS, WAITS, MISSES, SEED, BUDGET, SOT = range(14)
"""Indices in `Table.counters`: blocks never used yet, head of the free ones, blocks in use, those of rows that
somebody waits for or that are computed, rows, ends of the LRU list, counts since the start, and settings: the hash's
seed, blocks that the rows may have, the token that every context starts with."""
NONE = -1
TOGETHER = 128
"""Rows that are looked up together: few enough that what they need stays in the nearest caches."""
FIRST, TOKENS, CANDIDATES, SCORED, IS_CAUSAL = range(5)
"""What `split` says of a row: its context's first token in the history, tokens, candidates, scored positions, and
whether it is causal."""
SPAN = 5
META_WORDS = 8
"""int32 words of a block's entry in `Table.meta`: two to a line of the cache."""


class Table(NamedTuple):
    """The arrays of a table with B blocks; a row's slot is its first block.

    Attributes:
        words: int32 [B, BLOCK_WORDS], key and answer.
        halves: uint16 [B, BLOCK_HALVES], the same memory: answers are float16.
        meta: int32 [B, META_WORDS], the memory of the next seven: what is used together lies together.
        following: int32 [B], next block of the row, or of the free ones.
        hashes: uint64 [B].
        newer, older: int32 [B], neighbours in the LRU list of the remembered rows.
        key_words, value_halves: int32 [B], sizes.
        waiting: int32 [B], how often somebody waits for the row.
        state: uint8 [B].
        heads: int32 [power of two], open addressing: slot + 1, 0 for nothing.
        counters: int64 [14].
        costs: int64 [block size + 1], padded tokens of a context by its length with SOT.
    """

    words: Int32
    halves: UInt16
    meta: Int32
    following: Int32
    hashes: npt.NDArray[np.uint64]
    newer: Int32
    older: Int32
    key_words: Int32
    value_halves: Int32
    waiting: Int32
    state: npt.NDArray[np.uint8]
    heads: Int32
    counters: Int64
    costs: Int64

    @classmethod
    def empty(cls, blocks: int, costs: Int64) -> Table:
        """Without settings; memory of rows is taken as they come, in order.

        That of the index is taken now: it is used here and there, so that else each of the first rows would wait for
        the system to clear a page.
        """
        words = np.empty((blocks, BLOCK_WORDS), np.int32)
        meta = np.empty((blocks, META_WORDS), np.int32)
        heads = np.empty(1 << (2 * blocks - 1).bit_length(), np.int32)
        heads.fill(0)
        counters = np.zeros(14, np.int64)
        counters[[FREE, NEWEST, OLDEST]] = NONE
        return cls(
            words=words,
            halves=words.view(np.uint16),
            meta=meta,
            following=meta[:, 2],
            hashes=meta.view(np.uint64)[:, 0],
            newer=meta[:, 3],
            older=meta[:, 4],
            key_words=meta[:, 5],
            value_halves=meta[:, 6],
            waiting=meta[:, 7],
            state=np.zeros(blocks, np.uint8),
            heads=heads,
            counters=counters,
            costs=costs,
        )


class Request(NamedTuple):
    """A request's contents, named as in `ScoreQuery`."""

    is_window: bool
    window: int
    with_mass: bool
    history_tokens: Int32
    history_lengths: Int32
    candidate_tokens: Int32
    candidate_lengths: Int32


class Rows(NamedTuple):
    """The rows of a request, and its answer, of which each row has its part.

    Attributes:
        slots: int64 [n], ANSWERED or where the row is.
        first_candidate, first_position: int64 [n], where in the answer the row's begins.
        log_probs: uint16 [K], bits of float16.
        mass: uint16 [P], bits of float16; empty if it was not asked for.
    """

    slots: Int64
    first_candidate: Int64
    first_position: Int64
    log_probs: UInt16
    mass: UInt16


class Room(NamedTuple):
    """What the rows that are looked up together need meanwhile: n of them.

    Attributes:
        keys: int32 [n, words of the longest key].
        lengths: int64 [n], words of each key.
        hashes: uint64 [n].
        found: int64 [n], slots of rows with these hashes, or NONE.
        touched: int32 [n], what was read ahead; nobody reads it.
    """

    keys: Int32
    lengths: Int64
    hashes: npt.NDArray[np.uint64]
    found: Int64
    touched: Int32

    @classmethod
    def of(cls, rows: int, words: int) -> Room:
        """For a request of so many rows."""
        together = min(TOGETHER, rows)
        return cls(
            keys=np.empty((together, words), np.int32),
            lengths=np.empty(together, np.int64),
            hashes=np.empty(together, np.uint64),
            found=np.empty(together, np.int64),
            touched=np.empty(together, np.int32),
        )


class BatchArrays(NamedTuple):
    """The arrays of `scorer.Batch`, which says what they are."""

    tokens: Int32
    lengths: Int64
    scored_row: Int64
    scored_place: Int64
    candidates: Int32
    candidate_lengths: Int64
    with_mass: npt.NDArray[np.bool_]


class Kept(NamedTuple):
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


BLOCK_BYTES = 4 * BLOCK_WORDS + 4 * META_WORDS + 1 + 8
"""Of a block with its share of all arrays; the index has about two entries a block."""


def grown(table: Table, blocks: int) -> Table:
    """The same rows with room for more."""
    larger = Table.empty(blocks, table.costs)
    for mine, theirs in (
        (larger.words, table.words),
        (larger.meta, table.meta),
        (larger.state, table.state),
        (larger.counters, table.counters),
    ):
        mine[: len(theirs)] = theirs
    index_all(larger, table.heads)
    return larger


@compiled_in_place
def _hash(key: Int32, length: int, seed: int) -> np.uint64:
    """A 64-bit hash of the first words of a key."""
    h = np.uint64(seed) ^ np.uint64(length)
    for i in range(length):
        h = (h ^ np.uint64(np.uint32(key[i]))) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return h


@compiled_in_place
def _find(t: Table, key: Int32, length: int, h: np.uint64) -> int:
    """Slot of a key, or NONE."""
    mask = np.uint64(len(t.heads) - 1)
    probe = h & mask
    while t.heads[probe] != 0:
        slot = t.heads[probe] - 1
        if t.hashes[slot] == h and t.key_words[slot] == length:
            # Equal hashes are not trusted: the whole key is compared.
            block = slot
            same = True
            for i in range(length):
                if i and i % BLOCK_WORDS == 0:
                    block = t.following[block]
                if t.words[block, i % BLOCK_WORDS] != key[i]:
                    same = False
                    break
            if same:
                return int(slot)
        probe = (probe + np.uint64(1)) & mask
    return NONE


@compiled_in_place
def _link(t: Table, slot: int) -> None:
    """Enters a row into the index."""
    mask = np.uint64(len(t.heads) - 1)
    probe = t.hashes[slot] & mask
    while t.heads[probe] != 0:
        probe = (probe + np.uint64(1)) & mask
    t.heads[probe] = slot + 1


@compiled_in_place
def _unlink(t: Table, slot: int) -> None:
    """Takes a row out of the index, and moves up those that it had displaced."""
    mask = np.uint64(len(t.heads) - 1)
    probe = t.hashes[slot] & mask
    while t.heads[probe] != slot + 1:
        probe = (probe + np.uint64(1)) & mask
    gap = probe
    probe = (gap + np.uint64(1)) & mask
    while t.heads[probe] != 0:
        home = t.hashes[t.heads[probe] - 1] & mask
        if ((probe - home) & mask) >= ((probe - gap) & mask):  # its home is not between the gap and here
            t.heads[gap] = t.heads[probe]
            gap = probe
        probe = (probe + np.uint64(1)) & mask
    t.heads[gap] = 0


@compiled_in_place
def index_all(t: Table, old_index: Int32) -> None:
    """Enters all rows of a smaller table's index."""
    for i in range(len(old_index)):
        if old_index[i] != 0:
            _link(t, old_index[i] - 1)


@compiled_in_place
def _lru_append(t: Table, slot: int) -> None:
    """Puts a row at the recent end of the LRU list."""
    newest = t.counters[NEWEST]
    t.older[slot] = newest
    t.newer[slot] = NONE
    if newest == NONE:
        t.counters[OLDEST] = slot
    else:
        t.newer[newest] = slot
    t.counters[NEWEST] = slot


@compiled_in_place
def _lru_remove(t: Table, slot: int) -> None:
    """Takes a row out of the LRU list."""
    newer, older = t.newer[slot], t.older[slot]
    if newer == NONE:
        t.counters[NEWEST] = older
    else:
        t.older[newer] = older
    if older == NONE:
        t.counters[OLDEST] = newer
    else:
        t.newer[older] = newer


@compiled_in_place
def _blocks_of(t: Table, slot: int) -> int:
    words = t.key_words[slot] + (t.value_halves[slot] + 1) // 2
    return int((words + BLOCK_WORDS - 1) // BLOCK_WORDS)


@compiled_in_place
def _free(t: Table, slot: int) -> None:
    """Gives a row's blocks back; it is in no list any more."""
    count = _blocks_of(t, slot)
    last = slot
    for _ in range(count - 1):
        last = t.following[last]
    t.following[last] = t.counters[FREE]
    t.counters[FREE] = slot
    t.counters[USED] -= count
    t.counters[ROWS] -= 1
    t.state[slot] = 0


@compiled_in_place
def _evict_oldest(t: Table) -> None:
    """Forgets the least recently used row."""
    slot = t.counters[OLDEST]
    _lru_remove(t, slot)
    _unlink(t, slot)
    _free(t, slot)
    t.counters[EVICTED] += 1


@compiled_in_place
def _insert(t: Table, key: Int32, length: int, value_halves: int, h: np.uint64, state: int) -> int:
    """A new row: its slot. The caller has made sure that enough blocks are free or remembered."""
    count = (length + (value_halves + 1) // 2 + BLOCK_WORDS - 1) // BLOCK_WORDS
    while t.counters[USED] + count > len(t.words):
        _evict_oldest(t)
    # Chain the blocks, and copy the key into them.
    first = NONE
    last = NONE
    for i in range(count):
        block = t.counters[FREE]
        if block == NONE:
            block = t.counters[FRESH]
            t.counters[FRESH] += 1
        else:
            t.counters[FREE] = t.following[block]
        if i == 0:
            first = block
        else:
            t.following[last] = block
        last = block
        for j in range(min(BLOCK_WORDS, length - i * BLOCK_WORDS)):
            t.words[block, j] = key[i * BLOCK_WORDS + j]
    # Enter it.
    t.hashes[first] = h
    t.key_words[first] = length
    t.value_halves[first] = value_halves
    t.waiting[first] = 0
    t.state[first] = state
    t.counters[USED] += count
    t.counters[ROWS] += 1
    _link(t, first)
    return first


@compiled_in_place
def _seek(t: Table, slot: int, half: int) -> tuple[int, int]:
    """Block of a half of a row, and which half of the block it is; walks the row's blocks."""
    block = slot
    while half >= BLOCK_HALVES:
        block = t.following[block]
        half -= BLOCK_HALVES
    return block, half


@compiled_in_place
def _wrapped(t: Table, block: int, half: int) -> tuple[int, int]:
    """A half that may be one beyond its block."""
    if half == BLOCK_HALVES:
        return t.following[block], 0
    return block, half


@compiled_in_place
def _word(t: Table, slot: int, i: int) -> int:
    """Word i of a row's key."""
    block, half = _seek(t, slot, 2 * i)
    return int(t.words[block, half // 2])


@compiled_in_place
def _key_shape(header: int, length: int) -> tuple[int, int, int]:
    """Tokens of the context without SOT, positions that the answer spans, candidates: from a key's first word and
    its length in words."""
    tokens = header >> LENGTH_SHIFT
    if header & CAUSAL_FLAG:
        return tokens, tokens, length - 1 - 2 * tokens
    return tokens, 1, length - 1 - tokens


@compiled_in_place
def _value_size(header: int, length: int) -> int:
    """Halves of the answer to a key."""
    _, positions, candidates = _key_shape(header, length)
    return int(candidates + positions if header & MASS_FLAG else candidates)


@compiled_in_place
def _shape(t: Table, slot: int) -> tuple[int, int, int]:
    """See `_key_shape`."""
    return _key_shape(t.words[slot, 0], t.key_words[slot])


@compiled_in_place
def _copy_out(t: Table, slot: int, rows: Rows, i: int) -> None:
    """The answer to row i of a request, from its slot: log-probabilities, then masses if it has them."""
    first_candidate, first_position = rows.first_candidate[i], rows.first_position[i]
    half = 2 * t.key_words[slot]
    count = t.value_halves[slot]
    _, _, candidates = _shape(t, slot)
    # Nearly every row is one block: its answer is one piece, or two.
    if half + count <= BLOCK_HALVES:
        for j in range(candidates):
            rows.log_probs[first_candidate + j] = t.halves[slot, half + j]
        for j in range(candidates, count):
            rows.mass[first_position + j - candidates] = t.halves[slot, half + j]
        return
    block, half = _seek(t, slot, half)
    for j in range(count):
        block, half = _wrapped(t, block, half)
        if j < candidates:
            rows.log_probs[first_candidate + j] = t.halves[block, half]
        else:
            rows.mass[first_position + j - candidates] = t.halves[block, half]
        half += 1


@compiled_in_place
def _unpin(t: Table, slot: int) -> None:
    """Keeps an answered row that nobody waits for any more as the most recently used one, within the budget."""
    t.counters[PINNED] -= _blocks_of(t, slot)
    _lru_append(t, slot)
    while t.counters[USED] > t.counters[BUDGET] and t.counters[OLDEST] != NONE:
        _evict_oldest(t)


@compiled_in_place
def split(request: Request, longest: int, rows: Rows, spans: Int64) -> tuple[int, int]:
    """Cuts a request into rows.

    Args:
        request: to cut.
        longest: tokens of the longest context without SOT.
        rows: receives where each row's answer begins.
        spans: int64 [P, SPAN], receives what each row is of.

    Returns:
        How many rows there are, and the words of the longest key.
    """
    count = 0
    longest_key = 0
    start = 0
    c = 0
    p = 0
    for r in range(len(request.history_lengths)):
        n = request.history_lengths[r]
        # With the whole history, what fits the block is one causal row, up to the last position with candidates.
        whole = 0
        if not request.is_window and request.window == 0:
            whole = min(n, longest)
            while whole > 0 and request.candidate_lengths[p + whole - 1] == 0:
                whole -= 1
        if whole > 0:
            rows.first_candidate[count] = c
            rows.first_position[count] = p
            candidates = 0
            scored = 0
            for j in range(whole):
                candidates += request.candidate_lengths[p + j]
                scored += request.candidate_lengths[p + j] > 0
            spans[count, FIRST] = start
            spans[count, TOKENS] = whole
            spans[count, CANDIDATES] = candidates
            spans[count, SCORED] = scored
            spans[count, IS_CAUSAL] = 1
            longest_key = max(longest_key, 1 + 2 * whole + candidates)
            count += 1
            c += candidates
        # Every other position with candidates is a row of its own, after a window of tokens.
        positions = 1 if request.is_window else n
        limit = n if request.is_window else (request.window if request.window > 0 else longest)
        for j in range(whole, positions):
            candidates = request.candidate_lengths[p + j]
            if candidates == 0:
                continue
            end = n if request.is_window else j + 1
            rows.first_candidate[count] = c
            rows.first_position[count] = p + j
            tokens = min(end, limit)
            spans[count, FIRST] = start + end - tokens
            spans[count, TOKENS] = tokens
            spans[count, CANDIDATES] = candidates
            spans[count, SCORED] = 1
            spans[count, IS_CAUSAL] = 0
            longest_key = max(longest_key, 1 + tokens + candidates)
            count += 1
            c += candidates
        p += positions
        start += n
    return count, longest_key


@compiled_in_place
def _write_key(key: Int32, request: Request, rows: Rows, spans: Int64, i: int, seed: int) -> tuple[int, np.uint64]:
    """Writes the key of row i; returns its words and its hash.

    A key is a header, the context's tokens, the candidates of each of its positions if it is causal, and the
    candidates.
    """
    start, tokens, candidates, is_causal = spans[i, FIRST], spans[i, TOKENS], spans[i, CANDIDATES], spans[i, IS_CAUSAL]
    first_candidate, first_position = rows.first_candidate[i], rows.first_position[i]
    flags = (CAUSAL_FLAG if is_causal else 0) | (MASS_FLAG if request.with_mass else 0)
    key[0] = tokens << LENGTH_SHIFT | flags
    at = 1
    for j in range(tokens):
        key[at + j] = request.history_tokens[start + j]
    at += tokens
    if is_causal:
        for j in range(tokens):
            key[at + j] = request.candidate_lengths[first_position + j]
        at += tokens
    for j in range(candidates):
        key[at + j] = request.candidate_tokens[first_candidate + j]
    at += candidates
    return at, _hash(key, at, seed)


@compiled_in_place
def _foresee(t: Table, room: Room, count: int) -> None:
    """Finds rows by their hashes alone, all of them before any is used.

    Each of these loads is one from memory, and none waits for another one: the processor has many of them under way at
    once. What is found is a hint, and what is touched lies in the caches when it is used.

    Args:
        t: the table.
        room: its first hashes are looked for.
        count: how many.
    """
    hashes, found, touched = room.hashes, room.found, room.touched
    mask = np.uint64(len(t.heads) - 1)
    for i in range(count):
        found[i] = t.heads[hashes[i] & mask] - 1
    for i in range(count):
        slot = found[i]
        if slot == NONE or t.hashes[slot] == hashes[i]:
            continue
        # Another row is at its home: the next entries are near.
        probe = hashes[i] & mask
        while slot != NONE and t.hashes[slot] != hashes[i]:
            probe = (probe + np.uint64(1)) & mask
            slot = t.heads[probe] - 1
        found[i] = slot
    for i in range(count):
        slot = found[i]
        if slot != NONE:
            touched[i] = t.words[slot, 0] + t.state[slot]
    for i in range(count):
        slot = found[i]
        if slot != NONE and t.state[slot] == DONE and t.waiting[slot] == 0:  # it is in the LRU list
            newer, older = t.newer[slot], t.older[slot]
            touched[i] = (t.older[newer] if newer != NONE else 0) + (t.newer[older] if older != NONE else 0)


@compiled_in_place
def _is_there(t: Table, slot: int, key: Int32, length: int, h: np.uint64) -> bool:
    """Whether a slot that was a row's a moment ago is that of this key."""
    if slot == NONE or t.state[slot] == 0 or t.hashes[slot] != h or t.key_words[slot] != length:
        return False
    for i in range(min(length, BLOCK_WORDS)):
        if t.words[slot, i] != key[i]:
            return False
    return length <= BLOCK_WORDS


@compiled_in_place
def _look_up(t: Table, slot: int, spans: Int64, rows: Rows, i: int) -> None:
    """Row i of a request is at this slot, remembered or in flight."""
    # A hit: the answer is copied, and the row is the most recently used.
    if t.state[slot] == DONE:
        _copy_out(t, slot, rows, i)
        if t.waiting[slot] == 0 and t.counters[NEWEST] != slot:
            _lru_remove(t, slot)
            _lru_append(t, slot)
        t.counters[HITS] += spans[i, SCORED]
        rows.slots[i] = ANSWERED
        return
    # In flight: one more waits for it (single-flight).
    t.waiting[slot] += 1
    t.counters[WAITS] += spans[i, SCORED]
    rows.slots[i] = slot


@compiled_in_place
def ask(t: Table, request: Request, rows: Rows, spans: Int64, count: int, room: Room) -> tuple[int, int]:
    """Looks up every row of a request.

    Returns:
        The scored positions that are not answered, and the cost of the new rows.
    """
    unanswered = 0
    cost = 0
    for first in range(0, count, TOGETHER):
        here = min(TOGETHER, count - first)
        for j in range(here):
            key = room.keys[j]
            room.lengths[j], room.hashes[j] = _write_key(key, request, rows, spans, first + j, t.counters[SEED])
        _foresee(t, room, here)
        for j in range(here):
            i = first + j
            key = room.keys[j]
            length = room.lengths[j]
            slot = room.found[j]
            if not _is_there(t, slot, key, length, room.hashes[j]):
                slot = _find(t, key, length, room.hashes[j])
            if slot == NONE:  # a miss: the row is queued
                slot = _insert(t, key, length, _value_size(key[0], length), room.hashes[j], QUEUED)
                t.counters[PINNED] += _blocks_of(t, slot)
                t.waiting[slot] = 1
                t.counters[MISSES] += spans[i, SCORED]
                rows.slots[i] = slot
                cost += t.costs[spans[i, TOKENS] + 1]
            else:
                _look_up(t, slot, spans, rows, i)
            if rows.slots[i] != ANSWERED:
                unanswered += spans[i, SCORED]
    return unanswered, cost


@compiled_in_place
def take(t: Table, slots: Int64, first: int, tokens: int, into: Int64, count: int) -> tuple[int, int, int]:
    """See `AnswerTable.take`: where to go on, slots now in `into`, tokens spent."""
    spent = 0
    i = first
    while i < len(slots) and count < len(into):
        slot = slots[i]
        if slot != ANSWERED and t.state[slot] == QUEUED:
            cost = t.costs[(t.words[slot, 0] >> LENGTH_SHIFT) + 1]
            if spent + cost > tokens and count > 0:
                break
            t.state[slot] = RUNNING
            into[count] = slot
            count += 1
            spent += cost
        i += 1
    return i, count, spent


@compiled_in_place
def sizes(t: Table, slots: Int64) -> tuple[int, int, int]:
    """Tokens with SOT, scored places and candidates of rows."""
    all_tokens = 0
    places = 0
    all_candidates = 0
    for slot in slots:
        tokens, positions, candidates = _shape(t, slot)
        all_tokens += tokens + 1
        all_candidates += candidates
        if positions == 1:
            places += 1
        else:
            for j in range(positions):
                places += _word(t, slot, 1 + tokens + j) > 0
    return all_tokens, places, all_candidates


@compiled_in_place
def read(t: Table, slots: Int64, batch: BatchArrays) -> None:
    """Writes rows into the arrays of a batch."""
    at = 0
    s = 0
    c = 0
    for r in range(len(slots)):
        slot = slots[r]
        header = t.words[slot, 0]
        n, _, k = _shape(t, slot)
        is_causal = header & CAUSAL_FLAG != 0
        # The context begins with SOT.
        batch.lengths[r] = n + 1
        batch.tokens[at] = t.counters[SOT]
        at += 1
        # One walk over the key: tokens, of a causal row the candidates of each position, candidates.
        block = slot
        first = s
        for i in range(1, t.key_words[slot]):
            if i % BLOCK_WORDS == 0:
                block = t.following[block]
            word = t.words[block, i % BLOCK_WORDS]
            if i <= n:
                batch.tokens[at] = word
                at += 1
            elif is_causal and i <= 2 * n:
                if word > 0:
                    batch.scored_row[s] = r
                    batch.scored_place[s] = i - n
                    batch.candidate_lengths[s] = word
                    s += 1
            else:
                batch.candidates[c] = word
                c += 1
        # Any other row has one scored place, its end.
        if not is_causal:
            batch.scored_row[s] = r
            batch.scored_place[s] = n
            batch.candidate_lengths[s] = k
            s += 1
        for i in range(first, s):
            batch.with_mass[i] = header & MASS_FLAG != 0


@compiled_in_place
def fill(t: Table, slots: Int64, log_probs: UInt16, mass: UInt16) -> None:
    """See `AnswerTable.fill`."""
    c = 0
    s = 0
    for slot in slots:
        header = t.words[slot, 0]
        tokens, positions, candidates = _shape(t, slot)
        # Log-probabilities, behind the key.
        block, half = _seek(t, slot, 2 * t.key_words[slot])
        for _ in range(candidates):
            block, half = _wrapped(t, block, half)
            t.halves[block, half] = log_probs[c]
            half += 1
            c += 1
        # Masses, if they were asked for: 0 where nothing is scored, which the batch leaves out.
        for j in range(positions):
            is_scored = header & CAUSAL_FLAG == 0 or _word(t, slot, 1 + tokens + j) > 0
            if header & MASS_FLAG:
                block, half = _wrapped(t, block, half)
                t.halves[block, half] = mass[s] if is_scored else 0
                half += 1
            s += is_scored
        t.state[slot] = DONE
        if t.waiting[slot] == 0:
            _unpin(t, slot)


@compiled_in_place
def fail(t: Table, slots: Int64) -> None:
    """See `AnswerTable.fail`."""
    for slot in slots:
        _unlink(t, slot)
        if t.waiting[slot] == 0:
            t.counters[PINNED] -= _blocks_of(t, slot)
            _free(t, slot)
        else:
            t.state[slot] = FAILED


@compiled_in_place
def collect(t: Table, rows: Rows, first: int) -> tuple[int, bool]:
    """See `AnswerTable.collect`: where to go on, and whether no row has failed."""
    i = first
    while i < len(rows.slots):
        slot = rows.slots[i]
        if slot != ANSWERED:
            state = t.state[slot]
            if state == FAILED:
                return i, False
            if state != DONE:
                break
            _copy_out(t, slot, rows, i)
            rows.slots[i] = ANSWERED
            t.waiting[slot] -= 1
            if t.waiting[slot] == 0:
                _unpin(t, slot)
        i += 1
    return i, True


@compiled_in_place
def release(t: Table, slots: Int64, first: int) -> None:
    """See `AnswerTable.release`; from row `first` on."""
    for i in range(first, len(slots)):
        slot = slots[i]
        if slot == ANSWERED:
            continue
        slots[i] = ANSWERED
        t.waiting[slot] -= 1
        # Others wait for it, or the model computes it: it stays.
        if t.waiting[slot] > 0 or t.state[slot] == RUNNING:
            continue
        # Answered meanwhile: it is remembered.
        if t.state[slot] == DONE:
            _unpin(t, slot)
            continue
        # Queued, or failed and out of the index already: it goes.
        if t.state[slot] == QUEUED:
            _unlink(t, slot)
        t.counters[PINNED] -= _blocks_of(t, slot)
        _free(t, slot)


@compiled_in_place
def kept_sizes(t: Table) -> tuple[int, int, int]:
    """Remembered rows, words of their keys and halves of their answers."""
    rows = 0
    key_words = 0
    value_halves = 0
    slot = t.counters[OLDEST]
    while slot != NONE:
        rows += 1
        key_words += t.key_words[slot]
        value_halves += t.value_halves[slot]
        slot = t.newer[slot]
    return rows, key_words, value_halves


@compiled_in_place
def _keep_row(t: Table, slot: int, kept: Kept, row: int, w: int, h: int) -> None:
    """Writes one row: its sizes as number `row`, its key from word `w` on and its answer from half `h` on."""
    kept.key_words[row] = t.key_words[slot]
    kept.value_halves[row] = t.value_halves[slot]
    # The key, word by word.
    block = slot
    for i in range(t.key_words[slot]):
        if i and i % BLOCK_WORDS == 0:
            block = t.following[block]
        kept.words[w + i] = t.words[block, i % BLOCK_WORDS]
    # The answer behind it.
    block, half = _seek(t, slot, 2 * t.key_words[slot])
    for i in range(t.value_halves[slot]):
        block, half = _wrapped(t, block, half)
        kept.halves[h + i] = t.halves[block, half]
        half += 1


@compiled_in_place
def keep(t: Table, kept: Kept) -> None:
    """Writes the remembered rows into these arrays, least recently used first."""
    slot = t.counters[OLDEST]
    row = 0
    w = 0
    h = 0
    while slot != NONE:
        _keep_row(t, slot, kept, row, w, h)
        row += 1
        w += t.key_words[slot]
        h += t.value_halves[slot]
        slot = t.newer[slot]


@compiled_in_place
def kept_sizes_between(t: Table, first: int, last: int) -> tuple[int, int, int]:
    """As `kept_sizes`, of the answered rows whose slots are in [first, last), whether somebody waits for them or not.

    Blocks that are no row's first have no state.
    """
    rows = 0
    key_words = 0
    value_halves = 0
    for slot in range(first, last):
        if t.state[slot] == DONE:
            rows += 1
            key_words += t.key_words[slot]
            value_halves += t.value_halves[slot]
    return rows, key_words, value_halves


@compiled_in_place
def keep_between(t: Table, first: int, last: int, kept: Kept) -> None:
    """Writes these rows into these arrays, in the order of their slots."""
    row = 0
    w = 0
    h = 0
    for slot in range(first, last):
        if t.state[slot] == DONE:
            _keep_row(t, slot, kept, row, w, h)
            row += 1
            w += t.key_words[slot]
            h += t.value_halves[slot]


@compiled_in_place
def _is_well_formed(key: Int32, value_halves: int, longest: int) -> bool:
    """Whether a key says what its sizes say."""
    tokens, _, candidates = _key_shape(key[0], len(key))
    is_causal = key[0] & CAUSAL_FLAG != 0
    if tokens < 0 or tokens > longest or (is_causal and tokens == 0):
        return False
    if candidates <= 0 or value_halves != _value_size(key[0], len(key)):
        return False
    if not is_causal:
        return True
    # The candidates of a causal row's positions are all there are.
    total = 0
    for i in range(tokens):
        if key[1 + tokens + i] < 0:
            return False
        total += key[1 + tokens + i]
    return bool(total == candidates)


@compiled_in_place
def restore(t: Table, kept: Kept, fits: npt.NDArray[np.bool_]) -> bool:
    """See `AnswerTable.restore`: whether all rows were well-formed; those that do not fit are only checked."""
    w = 0
    h = 0
    for row in range(len(kept.key_words)):
        length = kept.key_words[row]
        value_halves = kept.value_halves[row]
        key = kept.words[w : w + length]
        if length < 2 or not _is_well_formed(key, value_halves, len(t.costs) - 2):
            return False
        code = _hash(key, length, t.counters[SEED])
        if fits[row] and _find(t, key, length, code) == NONE:
            slot = _insert(t, key, length, value_halves, code, DONE)
            block, half = _seek(t, slot, 2 * length)
            for i in range(value_halves):
                block, half = _wrapped(t, block, half)
                t.halves[block, half] = kept.halves[h + i]
                half += 1
            _lru_append(t, slot)
        w += length
        h += value_halves
    return True
