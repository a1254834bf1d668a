"""The compiled half of `rows.py`: what happens to each row, without the interpreter.

A table is a tuple of arrays, and functions that numba compiles change them in place. Sizes are in blocks, words
(int32) and halves (uint16, the bits of a float16).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.compiled import compiled

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]

BLOCK_WORDS = 16
"""int32 words of a block."""
QUEUED, RUNNING, DONE, FAILED = 1, 2, 3, 4
ANSWERED = -1
"""In place of the slot of a row whose answer has been copied out."""
CAUSAL_FLAG, MASS_FLAG, LENGTH_SHIFT = 1, 2, 2
"""The first word of a key: two flags, then the tokens of the context without SOT."""
FRESH, FREE, USED, PINNED, ROWS, NEWEST, OLDEST, EVICTED, HITS, WAITS, MISSES, SEED = range(12)
"""Places in `Table.counters`: blocks never used yet, head of the free ones, blocks in use, those of rows that
somebody waits for or that are computed, rows, ends of the list of remembered rows, and counts since the start."""
NONE = -1


class Table(NamedTuple):
    """The arrays of a table with B blocks; a row's slot is its first block.

    Attributes:
        words: int32 [B, BLOCK_WORDS], key and answer.
        halves: uint16 [B, 2 BLOCK_WORDS], the same memory: answers are float16.
        following: int32 [B], next block of the row, or of the free ones.
        hashes: uint64 [B].
        newer, older: int32 [B], neighbours in the list of remembered rows.
        key_words, value_halves: int32 [B], sizes.
        waiting: int32 [B], how often somebody waits for the row.
        state: uint8 [B].
        heads: int32 [power of two], open addressing: slot + 1, 0 for nothing.
        counters: int64 [12].
    """

    words: Int32
    halves: UInt16
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

    @classmethod
    def empty(cls, blocks: int, seed: int) -> Table:
        """Memory is taken as it fills."""
        words = np.empty((blocks, BLOCK_WORDS), np.int32)
        counters = np.zeros(12, np.int64)
        counters[[FREE, NEWEST, OLDEST]] = NONE
        counters[SEED] = seed
        return cls(
            words=words,
            halves=words.view(np.uint16),
            following=np.empty(blocks, np.int32),
            hashes=np.empty(blocks, np.uint64),
            newer=np.empty(blocks, np.int32),
            older=np.empty(blocks, np.int32),
            key_words=np.empty(blocks, np.int32),
            value_halves=np.empty(blocks, np.int32),
            waiting=np.zeros(blocks, np.int32),
            state=np.zeros(blocks, np.uint8),
            heads=np.zeros(1 << (2 * blocks - 1).bit_length(), np.int32),
            counters=counters,
        )


BLOCK_BYTES = 4 * BLOCK_WORDS + 4 + 8 + 4 * 5 + 1 + 8
"""Of a block with its share of all arrays; the index has about two entries a block."""


def grown(table: Table, blocks: int) -> Table:
    """The same rows with room for more."""
    larger = Table.empty(blocks, 0)
    for name in larger._fields:
        if name not in ("heads", "halves"):  # of other places, and of the same memory as words
            old = getattr(table, name)
            getattr(larger, name)[: len(old)] = old
    index_all(larger, table.heads)
    return larger


@compiled
def _hash(key: Int32, length: int, seed: int) -> np.uint64:
    """A 64-bit hash of the first words of a key."""
    h = np.uint64(seed) ^ np.uint64(length)
    for i in range(length):
        h = (h ^ np.uint64(np.uint32(key[i]))) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return h


@compiled
def _find(t: Table, key: Int32, length: int, h: np.uint64) -> int:
    """Slot of a key, or NONE."""
    mask = np.uint64(len(t.heads) - 1)
    place = h & mask
    while t.heads[place] != 0:
        slot = t.heads[place] - 1
        if t.hashes[slot] == h and t.key_words[slot] == length:
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
        place = (place + np.uint64(1)) & mask
    return NONE


@compiled
def _link(t: Table, slot: int) -> None:
    """Enters a row into the index."""
    mask = np.uint64(len(t.heads) - 1)
    place = t.hashes[slot] & mask
    while t.heads[place] != 0:
        place = (place + np.uint64(1)) & mask
    t.heads[place] = slot + 1


@compiled
def _unlink(t: Table, slot: int) -> None:
    """Takes a row out of the index, and moves up those that its place had displaced."""
    mask = np.uint64(len(t.heads) - 1)
    place = t.hashes[slot] & mask
    while t.heads[place] != slot + 1:
        place = (place + np.uint64(1)) & mask
    gap = place
    place = (gap + np.uint64(1)) & mask
    while t.heads[place] != 0:
        home = t.hashes[t.heads[place] - 1] & mask
        if ((place - home) & mask) >= ((place - gap) & mask):  # its home is not between the gap and its place
            t.heads[gap] = t.heads[place]
            gap = place
        place = (place + np.uint64(1)) & mask
    t.heads[gap] = 0


@compiled
def index_all(t: Table, old_index: Int32) -> None:
    """Enters all rows of a smaller table's index."""
    for i in range(len(old_index)):
        if old_index[i] != 0:
            _link(t, old_index[i] - 1)


@compiled
def _remember(t: Table, slot: int) -> None:
    """Makes a row the most recently used of the remembered ones."""
    newest = t.counters[NEWEST]
    t.older[slot] = newest
    t.newer[slot] = NONE
    if newest == NONE:
        t.counters[OLDEST] = slot
    else:
        t.newer[newest] = slot
    t.counters[NEWEST] = slot


@compiled
def _recall(t: Table, slot: int) -> None:
    """Takes a row out of the list of the remembered ones."""
    newer, older = t.newer[slot], t.older[slot]
    if newer == NONE:
        t.counters[NEWEST] = older
    else:
        t.older[newer] = older
    if older == NONE:
        t.counters[OLDEST] = newer
    else:
        t.newer[older] = newer


@compiled
def _blocks_of(t: Table, slot: int) -> int:
    words = t.key_words[slot] + (t.value_halves[slot] + 1) // 2
    return int((words + BLOCK_WORDS - 1) // BLOCK_WORDS)


@compiled
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


@compiled
def _evict_oldest(t: Table) -> None:
    slot = t.counters[OLDEST]
    _recall(t, slot)
    _unlink(t, slot)
    _free(t, slot)
    t.counters[EVICTED] += 1


@compiled
def _insert(t: Table, key: Int32, length: int, value_halves: int, h: np.uint64, state: int) -> int:
    """A new row: its slot. The caller has made sure that enough blocks are free or remembered."""
    count = (length + (value_halves + 1) // 2 + BLOCK_WORDS - 1) // BLOCK_WORDS
    while t.counters[USED] + count > len(t.words):
        _evict_oldest(t)
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
    t.hashes[first] = h
    t.key_words[first] = length
    t.value_halves[first] = value_halves
    t.waiting[first] = 0
    t.state[first] = state
    t.counters[USED] += count
    t.counters[ROWS] += 1
    _link(t, first)
    return first


@compiled
def _copy_out(t: Table, slot: int, log_probs: UInt16, first_candidate: int, mass: UInt16, first_position: int) -> None:
    """A row's answer to where a request wants it: log-probabilities, then masses if it has them."""
    _, _, candidates = _shape(t, slot)
    block = slot
    half = 2 * t.key_words[slot]
    while half >= 2 * BLOCK_WORDS:
        block = t.following[block]
        half -= 2 * BLOCK_WORDS
    total = t.value_halves[slot]
    for i in range(total):
        if half == 2 * BLOCK_WORDS:
            block = t.following[block]
            half = 0
        if i < candidates:
            log_probs[first_candidate + i] = t.halves[block, half]
        else:
            mass[first_position + i - candidates] = t.halves[block, half]
        half += 1


@compiled
def _word(t: Table, slot: int, i: int) -> int:
    """Word i of a row's key; walks its blocks."""
    block = slot
    while i >= BLOCK_WORDS:
        block = t.following[block]
        i -= BLOCK_WORDS
    return int(t.words[block, i])


@compiled
def _shape(t: Table, slot: int) -> tuple[int, int, int]:
    """Tokens of the context without SOT, positions that the answer spans, candidates."""
    header = t.words[slot, 0]
    tokens = header >> LENGTH_SHIFT
    if header & CAUSAL_FLAG:
        return tokens, tokens, t.key_words[slot] - 1 - 2 * tokens
    return tokens, 1, t.key_words[slot] - 1 - tokens


@compiled
def _forget_surplus(t: Table, budget: int) -> None:
    """Evicts until the rows fit the budget, or nothing is left that may go."""
    while t.counters[USED] > budget and t.counters[OLDEST] != NONE:
        _evict_oldest(t)


@compiled
def _settle(t: Table, slot: int, budget: int) -> None:
    """What becomes of an answered row when nobody waits for it any more."""
    t.counters[PINNED] -= _blocks_of(t, slot)
    _remember(t, slot)
    _forget_surplus(t, budget)


@compiled
def _look_up(
    t: Table, key: Int32, length: int, places: int, candidates: int, mass_wanted: bool,
    log_probs: UInt16, first_candidate: int, mass: UInt16, first_position: int, scored: int,
) -> tuple[int, bool]:  # fmt: skip
    """One row of a request: ANSWERED, or its slot; whether it is new."""
    h = _hash(key, length, t.counters[SEED])
    slot = _find(t, key, length, h)
    if slot == NONE:
        slot = _insert(t, key, length, candidates + (places if mass_wanted else 0), h, QUEUED)
        t.counters[PINNED] += _blocks_of(t, slot)
        t.waiting[slot] = 1
        t.counters[MISSES] += scored
        return slot, True
    if t.state[slot] == DONE:
        _copy_out(t, slot, log_probs, first_candidate, mass, first_position)
        if t.waiting[slot] == 0:
            _recall(t, slot)
            _remember(t, slot)
        t.counters[HITS] += scored
        return ANSWERED, False
    t.waiting[slot] += 1
    t.counters[WAITS] += scored
    return slot, False


@compiled
def ask(
    t: Table, is_window: bool, window: int, mass_wanted: bool, longest: int,
    history: Int32, history_lengths: Int32, candidates: Int32, candidate_lengths: Int32, costs: Int64,
    slots: Int64, first_candidate: Int64, first_position: Int64, log_probs: UInt16, mass: UInt16, key: Int32,
) -> tuple[int, int, int]:  # fmt: skip
    """Every row of a request; returns how many, the positions that are not answered, and the cost of the new rows."""
    rows = 0
    open_positions = 0
    cost = 0
    flag = MASS_FLAG if mass_wanted else 0
    start = 0  # of the history row
    c = 0  # of the position's candidates
    p = 0
    for r in range(len(history_lengths)):
        n = history_lengths[r]
        whole = 0  # positions that one causal row answers
        if not is_window and window == 0:
            whole = min(n, longest)
            while whole > 0 and candidate_lengths[p + whole - 1] == 0:
                whole -= 1
        if whole > 0:
            key[0] = whole << LENGTH_SHIFT | flag | CAUSAL_FLAG
            total = 0
            scored = 0
            for j in range(whole):
                key[1 + j] = history[start + j]
                key[1 + whole + j] = candidate_lengths[p + j]
                total += candidate_lengths[p + j]
                scored += candidate_lengths[p + j] > 0
            for j in range(total):
                key[1 + 2 * whole + j] = candidates[c + j]
            slot, is_new = _look_up(
                t, key, 1 + 2 * whole + total, whole, total, mass_wanted, log_probs, c, mass, p, scored
            )
            slots[rows] = slot
            first_candidate[rows] = c
            first_position[rows] = p
            rows += 1
            if is_new:
                cost += costs[whole + 1]
            if slot != ANSWERED:
                open_positions += scored
            c += total
        ends = 1 if is_window else n
        for j in range(whole, ends):
            k = candidate_lengths[p + j]
            if k == 0:
                continue
            if is_window:
                length = n
                first = start
            else:
                length = min(j + 1, window if window > 0 else longest)
                first = start + j + 1 - length
            key[0] = length << LENGTH_SHIFT | flag
            for i in range(length):
                key[1 + i] = history[first + i]
            for i in range(k):
                key[1 + length + i] = candidates[c + i]
            slot, is_new = _look_up(t, key, 1 + length + k, 1, k, mass_wanted, log_probs, c, mass, p + j, 1)
            slots[rows] = slot
            first_candidate[rows] = c
            first_position[rows] = p + j
            rows += 1
            if is_new:
                cost += costs[length + 1]
            if slot != ANSWERED:
                open_positions += 1
            c += k
        p += ends
        start += n
    return rows, open_positions, cost


@compiled
def take(
    t: Table, slots: Int64, first: int, tokens: int, costs: Int64, into: Int64, count: int
) -> tuple[int, int, int]:
    """See `RowTable.take`: where to go on, slots now in `into`, tokens spent."""
    spent = 0
    i = first
    while i < len(slots) and count < len(into):
        slot = slots[i]
        if slot != ANSWERED and t.state[slot] == QUEUED:
            cost = costs[(t.words[slot, 0] >> LENGTH_SHIFT) + 1]
            if spent + cost > tokens and count > 0:
                break
            t.state[slot] = RUNNING
            into[count] = slot
            count += 1
            spent += cost
        i += 1
    return i, count, spent


@compiled
def sizes(t: Table, slots: Int64) -> Int64:
    """Tokens with SOT, scored places and candidates of rows."""
    sizes = np.zeros(3, np.int64)
    for slot in slots:
        tokens, places, candidates = _shape(t, slot)
        sizes[0] += tokens + 1
        sizes[2] += candidates
        if places == 1:
            sizes[1] += 1
        else:
            for j in range(places):
                sizes[1] += _word(t, slot, 1 + tokens + j) > 0
    return sizes


@compiled
def read(
    t: Table, slots: Int64, sot: int, tokens: Int32, lengths: Int64, scored_row: Int64, scored_place: Int64,
    candidates: Int32, candidate_lengths: Int64, with_mass: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    """Rows as a batch; writes its arrays."""
    at = 0
    s = 0
    c = 0
    for r in range(len(slots)):
        slot = slots[r]
        header = t.words[slot, 0]
        n, _, k = _shape(t, slot)
        is_causal = header & CAUSAL_FLAG != 0
        lengths[r] = n + 1
        tokens[at] = sot
        at += 1
        block = slot
        first = s
        for i in range(1, t.key_words[slot]):
            if i % BLOCK_WORDS == 0:
                block = t.following[block]
            word = t.words[block, i % BLOCK_WORDS]
            if i <= n:
                tokens[at] = word
                at += 1
            elif is_causal and i <= 2 * n:
                if word > 0:
                    scored_row[s] = r
                    scored_place[s] = i - n
                    candidate_lengths[s] = word
                    s += 1
            else:
                candidates[c] = word
                c += 1
        if not is_causal:
            scored_row[s] = r
            scored_place[s] = n
            candidate_lengths[s] = k
            s += 1
        for i in range(first, s):
            with_mass[i] = header & MASS_FLAG != 0


@compiled
def fill(t: Table, slots: Int64, log_probs: UInt16, mass: UInt16, budget: int) -> None:
    """See `RowTable.fill`."""
    c = 0
    s = 0
    for slot in slots:
        tokens, places, candidates = _shape(t, slot)
        block = slot
        half = 2 * t.key_words[slot]
        while half >= 2 * BLOCK_WORDS:
            block = t.following[block]
            half -= 2 * BLOCK_WORDS
        is_causal = t.words[slot, 0] & CAUSAL_FLAG != 0
        for i in range(t.value_halves[slot]):
            if half == 2 * BLOCK_WORDS:
                block = t.following[block]
                half = 0
            if i < candidates:
                t.halves[block, half] = log_probs[c + i]
            elif is_causal and _word(t, slot, 1 + tokens + i - candidates) == 0:
                t.halves[block, half] = 0
            else:
                t.halves[block, half] = mass[s]
                s += 1
            half += 1
        c += candidates
        if t.words[slot, 0] & MASS_FLAG == 0:
            for i in range(places):
                s += not is_causal or _word(t, slot, 1 + tokens + i) > 0
        t.state[slot] = DONE
        if t.waiting[slot] == 0:
            _settle(t, slot, budget)


@compiled
def fail(t: Table, slots: Int64) -> None:
    """See `RowTable.fail`."""
    for slot in slots:
        _unlink(t, slot)
        if t.waiting[slot] == 0:
            t.counters[PINNED] -= _blocks_of(t, slot)
            _free(t, slot)
        else:
            t.state[slot] = FAILED


@compiled
def collect(
    t: Table, slots: Int64, first: int, first_candidate: Int64, first_position: Int64,
    log_probs: UInt16, mass: UInt16, budget: int,
) -> tuple[int, bool]:  # fmt: skip
    """See `RowTable.collect`: where to go on, and whether no row has failed."""
    i = first
    while i < len(slots):
        slot = slots[i]
        if slot != ANSWERED:
            state = t.state[slot]
            if state == FAILED:
                return i, False
            if state != DONE:
                break
            _copy_out(t, slot, log_probs, first_candidate[i], mass, first_position[i])
            slots[i] = ANSWERED
            t.waiting[slot] -= 1
            if t.waiting[slot] == 0:
                _settle(t, slot, budget)
        i += 1
    return i, True


@compiled
def release(t: Table, slots: Int64, first: int, budget: int) -> None:
    """See `RowTable.release`; from row `first` on."""
    for i in range(first, len(slots)):
        slot = slots[i]
        if slot == ANSWERED:
            continue
        slots[i] = ANSWERED
        t.waiting[slot] -= 1
        if t.waiting[slot] > 0 or t.state[slot] == RUNNING:
            continue
        if t.state[slot] == DONE:
            _settle(t, slot, budget)
            continue
        if t.state[slot] == QUEUED:
            _unlink(t, slot)
        t.counters[PINNED] -= _blocks_of(t, slot)
        _free(t, slot)


@compiled
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


@compiled
def keep(t: Table, key_words: Int32, value_halves: Int32, words: Int32, halves: UInt16) -> None:
    """Writes the remembered rows into these arrays, least recently used first."""
    slot = t.counters[OLDEST]
    row = 0
    w = 0
    h = 0
    while slot != NONE:
        key_words[row] = t.key_words[slot]
        value_halves[row] = t.value_halves[slot]
        row += 1
        block = slot
        end = 2 * t.key_words[slot]
        for i in range(end + t.value_halves[slot]):
            if i and i % (2 * BLOCK_WORDS) == 0:
                block = t.following[block]
            if i >= end:
                halves[h] = t.halves[block, i % (2 * BLOCK_WORDS)]
                h += 1
            elif i % 2 == 0:
                words[w] = t.words[block, i // 2 % BLOCK_WORDS]
                w += 1
        slot = t.newer[slot]


@compiled
def _is_well_formed(key: Int32, length: int, value_halves: int, longest: int) -> bool:
    """Whether a key says what its sizes say."""
    n = key[0] >> LENGTH_SHIFT
    if n < 0 or n > longest or (key[0] & CAUSAL_FLAG and n == 0):
        return False
    places = n if key[0] & CAUSAL_FLAG else 1
    candidates = length - 1 - n - (n if key[0] & CAUSAL_FLAG else 0)
    if candidates <= 0 or value_halves != candidates + (places if key[0] & MASS_FLAG else 0):
        return False
    if key[0] & CAUSAL_FLAG:
        total = 0
        for i in range(n):
            if key[1 + n + i] < 0:
                return False
            total += key[1 + n + i]
        return bool(total == candidates)
    return True


@compiled
def restore(
    t: Table, fits: npt.NDArray[np.bool_], longest: int,
    key_words: Int32, value_halves: Int32, words: Int32, halves: UInt16,
) -> bool:  # fmt: skip
    """See `RowTable.restore`: whether all rows were well-formed; those that do not fit are only checked."""
    w = 0
    h = 0
    for row in range(len(key_words)):
        length = key_words[row]
        key = words[w : w + length]
        if length < 2 or not _is_well_formed(key, length, value_halves[row], longest):
            return False
        code = _hash(key, length, t.counters[SEED])
        if fits[row] and _find(t, key, length, code) == NONE:
            slot = _insert(t, key, length, value_halves[row], code, DONE)
            block = slot
            half = 2 * length
            while half >= 2 * BLOCK_WORDS:
                block = t.following[block]
                half -= 2 * BLOCK_WORDS
            for i in range(value_halves[row]):
                if half == 2 * BLOCK_WORDS:
                    block = t.following[block]
                    half = 0
                t.halves[block, half] = halves[h + i]
                half += 1
            _remember(t, slot)
        w += length
        h += value_halves[row]
    return True
