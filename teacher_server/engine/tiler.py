"""From a batch of contexts to the few fixed shapes that the model computes: numpy, and how a tile is run.

    contexts -> by padded length and kind -> distinct ones -> tiles -> one state for each distinct scored place

Everything that touches floating point runs in a tile: a shape that depends on the settings alone, filled up with
padding, each of its rows computed independently of the others. There are a few sizes of tile for each kind and padded
length; a size is only used where its rows have the same bits as the largest one's (`sample`). What kind of tile a
context is computed in depends on that context alone. So an answer has the same bits whatever it shares a batch with.

Shapes: R contexts, N context tokens, S scored places, U distinct states, T padded length, M nodes of a tile.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from teacher_server.lmtad.model import LMTAD
from teacher_server.scorer import Batch, Int32, Int64

UInt64 = npt.NDArray[np.uint64]

SIZES = 3
"""Sizes of tile, each a quarter of the one before."""
OVERHEAD = 0.05
"""What a tile takes beside its tokens, as a share of the largest; measured on a CPU."""
SCORED_SHARE = 3 / 8
"""Scored nodes of a tile of a tree; on real trips, windows of four, 30 % of the distinct prefixes are scored."""
LEAST_ROWS = 8
"""Rows of the smallest matrix product; with fewer, other kernels are used, which give other bits."""
_NOTHING = -1
_SEED = 0x7EAC


class Kind(enum.Enum):
    """How contexts are computed."""

    PLACES = "places"
    """One row each, every place."""
    ENDS = "ends"
    """One row each, in the last block only the end."""
    TREE = "tree"
    """Short ones: one node for each distinct prefix."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Contexts that may share a tile, by their own properties.

    Attributes:
        kind: how they are computed.
        width: T.
    """

    kind: Kind
    width: int

    def sizes(self, tile_tokens: int) -> tuple[int, ...]:
        """Sizes of their tiles, largest first: contexts, or nodes for a tree; tokens for the largest."""
        tokens = [tile_tokens // 4**i for i in range(SIZES)]
        if self.kind is Kind.TREE:
            least = _rounded_up(max(2 * LEAST_ROWS, self.width))
            found = {max(least, _rounded_up(number)) for number in tokens}
        else:
            found = {max(1, number // self.width) for number in tokens}
        return tuple(sorted(found, reverse=True))

    @property
    def unit(self) -> int:
        """Tokens of what sizes count, with padding."""
        return 1 if self.kind is Kind.TREE else self.width

    def samples(self, size: int) -> int:
        """Whole contexts that a tile has room for."""
        return min(size // self.width, int(SCORED_SHARE * size)) if self.kind is Kind.TREE else size


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The lengths to which contexts are padded on the right, where causal attention cannot see it.

    Attributes:
        widths: ascending; the last is the block size.
        prefix_width: up to this width contexts are computed as a tree.
    """

    widths: tuple[int, ...]
    prefix_width: int

    @classmethod
    def make(cls, block_size: int, smallest: int, per_doubling: int, prefix_window: int) -> Buckets:
        """Widths 1 + smallest * 2^(i / per_doubling), so that windows of common lengths need no padding.

        Args:
            block_size: longest context.
            smallest: tokens after SOT in the first bucket.
            per_doubling: buckets between a length and its double.
            prefix_window: tokens after SOT in the last bucket that is a tree; 0: none is.
        """
        steps = np.arange(1 + per_doubling * int(np.ceil(np.log2(max(block_size / smallest, 1)) + 1)))
        widths = 1 + np.unique(np.floor(smallest * 2.0 ** (steps / per_doubling)).astype(np.int64))
        widths = np.append(widths[widths < block_size], block_size)
        return cls(tuple(widths.tolist()), 1 + prefix_window if prefix_window else 0)

    @property
    def groups(self) -> list[Group]:
        """Every group that a context may be of."""
        trees = [Group(Kind.TREE, width) for width in self.widths if width <= self.prefix_width]
        kinds = (Kind.PLACES, Kind.ENDS)
        return trees + [Group(kind, width) for width in self.widths[len(trees) :] for kind in kinds]

    @property
    def costs(self) -> Int64:
        """Width by context length, 0 for none: int64 [block size + 1]."""
        return np.append(0, self.pad(np.arange(1, self.widths[-1] + 1)))

    def pad(self, lengths: npt.NDArray[np.integer]) -> Int64:
        """Width of each context length."""
        widths = np.array(self.widths, np.int64)
        return widths[np.searchsorted(widths, lengths)]


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """One of the fixed shapes, filled.

    Attributes:
        group: what its contexts have in common.
        size: contexts, or nodes for a tree.
        inputs: int32 [size, T] tokens; for a tree int32 [size, 2 + T]: token, depth and ancestors of each node.
        index: int32, the places to compute among the size * T, or the scored nodes.
        count: of these, how many are no padding.
        first: the first state that it computes; the others follow.
    """

    group: Group
    size: int
    inputs: Int32
    index: Int32
    count: int
    first: int = 0

    def states(self, network: LMTAD, device: torch.device) -> Tensor:
        """Final hidden states: [count, D]."""
        inputs = torch.from_numpy(self.inputs).to(device)
        index = torch.from_numpy(self.index).to(device)
        if self.group.kind is Kind.TREE:
            states = network.hidden_of_tree(inputs[:, 0], inputs[:, 1], inputs[:, 2:], index)
        elif self.group.kind is Kind.ENDS:
            states = network.hidden_at(inputs, index)
        else:
            states = network.hidden(inputs).flatten(0, 1)[index]
        return states[: self.count]


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of a batch.

    Attributes:
        tiles: the largest first.
        state: int64 [S], state of each scored place.
        states: U.
        contexts: distinct contexts of rows, and distinct scored prefixes of trees.
        tokens: tokens or nodes, without padding.
    """

    tiles: list[Tile]
    state: Int64
    states: int
    contexts: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Tiler:
    """Cuts batches into tiles.

    Attributes:
        buckets: padded lengths.
        sizes: sizes of tile that may be used for each group, largest first.
        overhead: what a tile takes beside its tokens, in tokens.
        threads: tiles that are computed at once.
        pad: token of the padding.
    """

    buckets: Buckets
    sizes: Mapping[Group, tuple[int, ...]]
    overhead: float
    threads: int
    pad: int

    def tile(self, batch: Batch) -> Tiling:
        """The tiles of a batch."""
        found = list(self._parts(batch))
        smaller = self._smaller_by([(group, part.need) for group, _, part in found])
        tiles: list[Tile] = []
        state = np.empty(len(batch.scored_row), np.int64)
        states = 0
        for group, slots, part in found:
            choice = self._choice(group, smaller)
            tiles += [
                dataclasses.replace(tile, first=tile.first + states) for tile in part.cut(group, choice, self.pad)
            ]
            state[slots] = part.state + states
            states += part.states
        return Tiling(
            tiles=sorted(tiles, key=lambda tile: -tile.group.unit * tile.size),
            state=state,
            states=states,
            contexts=sum(len(part.lengths) for _, _, part in found),
            tokens=sum(part.tokens for _, _, part in found),
        )

    def _parts(self, batch: Batch) -> Iterator[tuple[Group, Int64, _Rows | _Tree]]:
        """Contexts by group, with the scored places of each."""
        width = self.buckets.pad(batch.lengths)
        inner = batch.scored_place < batch.lengths[batch.scored_row] - 1
        every_place = np.zeros(len(width), np.bool_)
        every_place[batch.scored_row[inner]] = True
        code = (2 * width + (every_place & (width > self.buckets.prefix_width)))[batch.scored_row]
        for number in np.unique(code).tolist():
            width, slots = number // 2, np.flatnonzero(code == number)
            if width <= self.buckets.prefix_width:
                yield Group(Kind.TREE, width), slots, _Tree.make(batch, slots, width)
            else:
                group = Group(Kind.PLACES if number % 2 else Kind.ENDS, width)
                yield group, slots, _Rows.make(batch, slots, width, self.pad)

    def _choice(self, group: Group, smaller: int) -> Choice:
        sizes = self.sizes[group]
        return Choice(sizes[min(smaller, len(sizes) - 1) :], self.overhead / group.unit)

    def _smaller_by(self, needs: Sequence[tuple[Group, int]]) -> int:
        """How many of the largest sizes to leave out, so that the threads are done soonest."""
        if self.threads == 1:
            return 0

        def duration(smaller: int) -> float:
            ends = [0.0] * self.threads
            covers = [(group, self._choice(group, smaller).cover(need)) for group, need in needs]
            costs = [size * group.unit + self.overhead for group, sizes in covers for size in sizes]
            for cost in sorted(costs, reverse=True):
                heapq.heapreplace(ends, ends[0] + cost)
            return max(ends)

        return min(range(SIZES), key=duration)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Sizes to choose from.

    Attributes:
        sizes: largest first.
        overhead: what a tile takes beside its contents, in the unit of the sizes.
    """

    sizes: tuple[int, ...]
    overhead: float

    def cover(self, count: int) -> list[int]:
        """Tiles for so many: the largest while it is filled, the rest as cheaply as can be."""
        largest, smaller = self.sizes[0], self.sizes[1:]
        full, rest = divmod(count, largest)
        last = [largest] if rest else []
        if rest and smaller:
            others = Choice(smaller, self.overhead).cover(rest)
            if sum(others) + self.overhead * len(others) < largest + self.overhead:
                last = others
        return [largest] * full + last


def sample(group: Group, size: int, contexts: Int32, random: np.random.Generator) -> tuple[Tile, Int64]:
    """A full tile of repeated contexts in random places, and of what place of which context its states are.

    The order of summation does not depend on the data: if random contexts have the same bits everywhere in
    tiles of two sizes, all have.

    Args:
        group: kind and T.
        size: of the tile.
        contexts: int32 [k, T]; no more than fit a tile of the smallest size.
        random: draws the places.

    Returns:
        The tile, and int64 [count].
    """
    k, width = contexts.shape
    rows = size // width if group.kind is Kind.TREE else size
    order = random.permutation(np.append(np.arange(k), random.integers(k, size=rows - k)))
    tokens = contexts[order]
    if group.kind is Kind.PLACES:
        which = (order[:, None] * width + np.arange(width)).flatten()
        return Tile(group, size, tokens, np.arange(size * width, dtype=np.int32), size * width), which
    if group.kind is Kind.ENDS:
        ends = width * np.arange(1, size + 1) - 1
        return Tile(group, size, tokens, _filled(ends, max(size, LEAST_ROWS)), size), order
    nodes = _nodes(tokens, np.full(rows, width), np.zeros(rows, np.int64))
    scored = int(SCORED_SHARE * size)
    first = np.unique(order, return_index=True)[1]
    chain = random.permutation(np.append(first[:scored], random.integers(rows, size=max(0, scored - k))))
    return Tile(group, size, _filled(nodes, size), (width * (chain + 1) - 1).astype(np.int32), scored), order[chain]


def distinct_rows(rows: Int32) -> tuple[Int32, Int64]:
    """Distinct rows of [n, T] and, for each row, which of them it is.

    They are found by a 64-bit hash and compared in full: if two different rows share a hash, none is merged.
    """
    _, first, inverse = np.unique(_hash(rows), return_index=True, return_inverse=True)
    distinct = rows[first]
    if not np.array_equal(distinct[inverse], rows):
        return rows, np.arange(len(rows), dtype=np.int64)
    return distinct, inverse


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Distinct contexts, n of them, one row each.

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
    def make(cls, batch: Batch, slots: Int64, width: int, pad: int) -> _Rows:
        """From the scored places `slots` of a batch."""
        rows, row = np.unique(batch.scored_row[slots], return_inverse=True)
        lengths = batch.lengths[rows].astype(np.int64)
        tokens = batch.tokens[ragged.slices(ragged.offsets(batch.lengths)[rows], lengths)]
        contexts, inverse = distinct_rows(ragged.pad(tokens, lengths, width, pad))
        of_distinct = np.empty(len(contexts), np.int64)
        of_distinct[inverse] = lengths
        places, state = np.unique(inverse[row] * width + batch.scored_place[slots], return_inverse=True)
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
            part = self.contexts[start : start + size]
            tokens[: len(part)] = part
            low, high = np.searchsorted(self.places, [start * group.width, (start + size) * group.width]).tolist()
            index = self.places[low:high] - start * group.width
            least = max(size, LEAST_ROWS) if group.kind is Kind.ENDS else len(index)
            yield Tile(group, size, tokens, _filled(index, least), len(index), low)
            start += size


@dataclasses.dataclass(frozen=True, eq=False)
class _Tree:
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
    def make(cls, batch: Batch, slots: Int64, width: int) -> _Tree:
        """From the scored places `slots` of a batch."""
        starts, lengths = ragged.offsets(batch.lengths)[batch.scored_row[slots]], batch.scored_place[slots] + 1
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
            part = slice(start, min(fits, start + scored, n))
            shared = self.shared[part].copy()
            shared[0] = 0
            lengths = self.lengths[part]
            inputs = np.zeros((size, 2 + group.width), np.int32)
            inputs[:, 0] = pad
            found = _nodes(self.prefixes[part], lengths, shared)
            inputs[: len(found)] = found
            ends = np.cumsum(lengths - shared) - 1  # the last token of each prefix is a node of its own
            yield Tile(group, size, inputs, _filled(ends, scored), len(ends), start)
            start = part.stop


def _nodes(prefixes: Int32, lengths: Int64, shared: Int64) -> Int32:
    """The nodes of neighbouring prefixes: token, depth and ancestors, int32 [nodes, 2 + T].

    A prefix adds a node for each token that it does not share. Its node at another depth is the latest at that
    depth, and nodes are numbered in the order in which they are added: so the latest is the highest so far.
    """
    width = prefixes.shape[1]
    new = lengths - shared
    row = ragged.rows(new)
    depth = ragged.positions(new) + shared[row]
    number = np.zeros(prefixes.shape, np.int64)
    number[row, depth] = np.arange(len(row))
    path = np.maximum.accumulate(number, axis=0)[row]
    inputs = np.empty((len(row), 2 + width), np.int32)
    inputs[:, 0] = prefixes[row, depth]
    inputs[:, 1] = depth
    inputs[:, 2:] = np.where(np.arange(width) <= depth[:, None], path, 0)
    return inputs


def _filled(values: npt.NDArray, size: int) -> Int32:
    """Zeros added at the end: int32 [size, ...]."""
    filled = np.zeros((size, *values.shape[1:]), np.int32)
    filled[: len(values)] = values
    return filled


def _rounded_up(number: int) -> int:
    return -(-number // LEAST_ROWS) * LEAST_ROWS


def _hash(rows: Int32) -> UInt64:
    """A 64-bit hash of each row: a sum of products with fixed odd numbers, its upper bits the better ones."""
    factors = np.random.default_rng(_SEED).integers(1 << 63, size=rows.shape[1], dtype=np.uint64) * 2 + 1
    hashes: UInt64 = (rows.astype(np.uint64) * factors).sum(1)
    return hashes
