"""Layouts of contexts in numpy, by sorting: the reference for those of the teacher, which are compiled and hash.

They share nothing but the shapes of tiles and `layouts.Tile`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shared import ragged
from shared.arrays import Int32, Int64
from teacher_server.engine.layouts import Tile, filled, nodes_of
from teacher_server.engine.shapes import SCORED_SHARE, Choice, Group, Kind
from teacher_server.engine.tiler import Tiler, Tiling
from teacher_server.scorer import Batch

UInt64 = npt.NDArray[np.uint64]

_NOTHING = -1
_SEED = 0x7EAC


def tile(tiler: Tiler, batch: Batch) -> Tiling:
    """What `Tiler.tile` gives."""
    found = list(_layouts(tiler, batch))
    smaller = tiler._smaller_by([(group, layout.need) for group, _, layout in found])
    tiles: list[Tile] = []
    state = np.empty(len(batch.scored_row), np.int64)
    states = 0
    for group, scored, layout in found:
        cut = layout.cut(group, tiler._choice(group, smaller), tiler.pad)
        tiles += [dataclasses.replace(tile, first=tile.first + states) for tile in cut]
        state[scored] = layout.state + states
        states += layout.states
    return Tiling(
        tiles=sorted(tiles, key=lambda tile: -tile.group.unit * tile.size),
        state=state,
        states=states,
        contexts=sum(len(layout.lengths) for _, _, layout in found),
        tokens=sum(layout.tokens for _, _, layout in found),
    )


def pairs_of(tiling: Tiling, batch: Batch) -> Int64:
    """State and token of each candidate: int64 [K, 2]."""
    return np.stack([np.repeat(tiling.state, batch.candidate_lengths), batch.candidates], 1)


def _layouts(tiler: Tiler, batch: Batch) -> Iterator[tuple[Group, Int64, PlainLayout | TreeLayout]]:
    buckets = tiler.buckets
    width = buckets.pad(batch.lengths)
    inner = batch.scored_place < batch.lengths[batch.scored_row] - 1
    every_place = np.zeros(len(width), np.bool_)
    every_place[batch.scored_row[inner]] = True
    code = (2 * width + (every_place & (width > buckets.prefix_width)))[batch.scored_row]
    for number in np.unique(code).tolist():
        width, scored = number // 2, np.flatnonzero(code == number)
        if width <= buckets.prefix_width:
            yield buckets.group(Kind.TREE, width), scored, TreeLayout.make(batch, scored, width)
        else:
            group = buckets.group(Kind.PLACES if number % 2 else Kind.ENDS, width)
            yield group, scored, PlainLayout.make(batch, scored, width, tiler.pad)


@dataclasses.dataclass(frozen=True, eq=False)
class PlainLayout:
    """Distinct contexts, n of them, one sequence each.

    Attributes:
        contexts: int32 [n, T], padded.
        lengths: int64 [n].
        places: int64 [u], the distinct scored places among the n * T, ascending.
        state: int64, which of these each scored place is.
    """

    contexts: Int32
    lengths: Int64
    places: Int64
    state: Int64

    @classmethod
    def make(cls, batch: Batch, scored: Int64, width: int, pad: int) -> PlainLayout:
        """From some of the scored places of a batch, which `scored` says: int64, ascending."""
        rows, row = np.unique(batch.scored_row[scored], return_inverse=True)
        lengths = batch.lengths[rows].astype(np.int64)
        tokens = batch.tokens[ragged.slices(ragged.offsets(batch.lengths)[rows], lengths)]
        contexts, inverse = distinct_contexts(ragged.pad(tokens, lengths, width, pad))
        of_distinct = np.empty(len(contexts), np.int64)
        of_distinct[inverse] = lengths
        places, state = np.unique(inverse[row] * width + batch.scored_place[scored], return_inverse=True)
        return cls(contexts, of_distinct, places, state)

    @property
    def need(self) -> int:
        """Contexts that tiles must hold."""
        return len(self.contexts)

    @property
    def states(self) -> int:
        """Distinct scored places."""
        return len(self.places)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.lengths.sum())

    def cut(self, group: Group, choice: Choice, pad: int) -> Iterator[Tile]:
        """Tiles of these sizes."""
        start = 0
        for size in choice.cover(self.need):
            tokens = np.full((size, group.width), pad, np.int32)
            contexts = self.contexts[start : start + size]
            tokens[: len(contexts)] = contexts
            low, high = np.searchsorted(self.places, [start * group.width, (start + size) * group.width]).tolist()
            index = self.places[low:high] - start * group.width
            least = group.most_states(size) if group.kind is Kind.ENDS else len(index)
            yield Tile(group, size, tokens, filled(index, least), len(index), low)
            start += size


@dataclasses.dataclass(frozen=True, eq=False)
class TreeLayout:
    """Distinct scored prefixes, n of them, in lexicographic order, so that neighbours share the most.

    Attributes:
        prefixes: int32 [n, T], padded with -1, which sorts a prefix before all that it begins.
        lengths: int64 [n].
        shared: int64 [n], tokens at its start that each has in common with the one before it.
        state: int64, which of these each scored place is.
    """

    prefixes: Int32
    lengths: Int64
    shared: Int64
    state: Int64

    @classmethod
    def make(cls, batch: Batch, scored: Int64, width: int) -> TreeLayout:
        """From some of the scored places of a batch, which `scored` says: int64, ascending."""
        starts, lengths = ragged.offsets(batch.lengths)[batch.scored_row[scored]], batch.scored_place[scored] + 1
        prefixes = ragged.pad(batch.tokens[ragged.slices(starts, lengths)], lengths, width, _NOTHING)
        order = np.lexsort(prefixes.T[::-1])
        prefixes = prefixes[order]
        differs = prefixes[1:] != prefixes[:-1]
        is_new = np.append(np.True_, differs.any(1))
        state = np.empty(len(order), np.int64)
        state[order] = np.cumsum(is_new) - 1
        shared = np.append(0, differs.argmax(1))[is_new]
        return cls(prefixes[is_new], lengths[order][is_new], shared, state)

    @property
    def need(self) -> int:
        """Nodes that tiles must hold, or more if the scored ones need more."""
        return max(self.tokens, int(np.ceil(self.states / SCORED_SHARE)))

    @property
    def states(self) -> int:
        """Distinct scored prefixes."""
        return len(self.prefixes)

    @property
    def tokens(self) -> int:
        """Distinct nodes."""
        return int((self.lengths - self.shared).sum())

    def cut(self, group: Group, choice: Choice, pad: int) -> Iterator[Tile]:
        """Tiles of these sizes; a prefix at the edge of two is in both."""
        before = ragged.offsets(self.lengths - self.shared)
        start, n = 0, len(self.prefixes)
        while start < n:
            again = int(self.shared[start])
            nodes = int(before[-1] - before[start]) + again
            need = max(nodes, int(np.ceil((n - start) / SCORED_SHARE)))
            size = choice.cover(need)[0]
            scored = int(SCORED_SHARE * size)
            fits = int(np.searchsorted(before, before[start] + size - again, side="right")) - 1
            fitting = slice(start, min(fits, start + scored, n))
            shared = self.shared[fitting].copy()
            shared[0] = 0
            lengths = self.lengths[fitting]
            inputs = np.zeros((size, 2 + group.width), np.int32)
            inputs[:, 0] = pad
            found = nodes_of(self.prefixes[fitting], lengths, shared)
            inputs[: len(found)] = found
            ends = np.cumsum(lengths - shared) - 1  # the last token of each prefix is a node of its own
            yield Tile(group, size, inputs, filled(ends, scored), len(ends), start)
            start = fitting.stop


def distinct_contexts(contexts: Int32) -> tuple[Int32, Int64]:
    """Distinct contexts of [n, T] and, for each context, which of them it is.

    They are found by a 64-bit hash and compared in full: if two different ones share a hash, none is merged.
    """
    _, first, inverse = np.unique(_hash(contexts), return_index=True, return_inverse=True)
    distinct = contexts[first]
    if not np.array_equal(distinct[inverse], contexts):
        return contexts, np.arange(len(contexts), dtype=np.int64)
    return distinct, inverse


def _hash(contexts: Int32) -> UInt64:
    """A 64-bit hash of each context: a sum of products with fixed odd numbers, its upper bits the better ones."""
    factors = np.random.default_rng(_SEED).integers(1 << 63, size=contexts.shape[1], dtype=np.uint64) * 2 + 1
    hashes: UInt64 = (contexts.astype(np.uint64) * factors).sum(1)
    return hashes
