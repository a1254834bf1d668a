"""How the contexts of a group are laid out in tiles: plainly, one after another, or as a tree of their prefixes.

    scored places of a group -> distinct contexts or prefixes -> tiles -> one state for each distinct scored place

Shapes: R contexts, S scored places, U distinct states, T padded length, M nodes of a tile.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Int32, Int64
from teacher_server.engine import compiled
from teacher_server.engine.compiled import Contexts, Nodes, Trie
from teacher_server.engine.forward import states_of
from teacher_server.engine.shapes import SCORED_SHARE, Choice, Group, Kind
from teacher_server.lmtad.model import LMTAD

_FACTOR = secrets.randbits(62) | 1
"""Of the hashes, odd, another one in each process; no layout depends on it."""


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
        states = states_of(self.group, network, inputs, index)
        return states[: self.count]


@dataclasses.dataclass(frozen=True, eq=False)
class PlainLayout:
    """Distinct contexts, n of them, one sequence each.

    Attributes:
        batch: whose they are.
        rows: int64 [n], where in the batch each is first.
        width: T.
        places: int64 [u], the distinct scored places among the n * T, ascending.
    """

    batch: Contexts
    rows: Int64
    width: int
    places: Int64

    @classmethod
    def make(cls, batch: Contexts, width: int, state: Int64) -> PlainLayout:
        """From the scored places of a group.

        Args:
            batch: the contexts, and the places.
            width: T.
            state: int64 [S], receives of each of these places which of the distinct ones it is.
        """
        count = len(batch.chosen)
        rows, of_place = np.empty((2, count), np.int64)
        distinct = compiled.find_contexts(batch, np.zeros(_room_for(count), np.int32), rows, of_place, _FACTOR)
        numbers = np.zeros(distinct * width, np.int32)
        places = np.empty(count, np.int64)
        states = compiled.number_places(batch, of_place, numbers, width, places, state)
        return cls(batch, rows[:distinct], width, places[:states])

    @property
    def need(self) -> int:
        """Contexts that tiles must hold."""
        return len(self.rows)

    @property
    def contexts(self) -> int:
        """Distinct contexts."""
        return len(self.rows)

    @property
    def states(self) -> int:
        """Distinct scored places."""
        return len(self.places)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.batch.lengths[self.rows].sum())

    def cut(self, group: Group, choice: Choice, pad: int, state: int) -> Iterator[Tile]:
        """Tiles of these sizes; `state` is the number of the first state."""
        start = 0
        for size in choice.cover(self.need):
            tokens = np.empty((size, group.width), np.int32)
            compiled.fill_contexts(self.batch, self.rows[start : start + size], pad, tokens)
            low, high = np.searchsorted(self.places, [start * group.width, (start + size) * group.width]).tolist()
            index = self.places[low:high] - start * group.width
            least = group.most_states(size) if group.kind is Kind.ENDS else len(index)
            yield Tile(group, size, tokens, filled(index, least), len(index), state + low)
            start += size


@dataclasses.dataclass(frozen=True, eq=False)
class TreeLayout:
    """Distinct scored prefixes, n of them, as a tree, in lexicographic order, so that neighbours share the most.

    Attributes:
        nodes: of the tree.
        width: T.
    """

    nodes: Nodes
    width: int

    @classmethod
    def make(cls, batch: Contexts, width: int, state: Int64) -> TreeLayout:
        """From the scored places of a group.

        Args:
            batch: the contexts, and the places.
            width: T.
            state: int64 [S], receives of each of these places which of the prefixes it is.
        """
        most = compiled.prefix_tokens(batch)
        room = _room_for(most)
        trie = Trie(
            keys=np.full(room, compiled.NONE, np.int64),
            values=np.empty(room, np.int32),
            parent=np.empty(most + 1, np.int32),
            token=np.empty(most + 1, np.int32),
            child=np.empty(most + 1, np.int32),
            sibling=np.empty(most + 1, np.int32),
            sorted=np.empty((2, most), np.int32),
            state=np.empty(most + 1, np.int32),
            node=np.empty(len(batch.chosen), np.int32),
            counts=np.empty(compiled.DIGITS, np.int32),
        )
        count = compiled.grow(trie, batch, _FACTOR)
        nodes = Nodes(
            token=np.empty(count, np.int32),
            depth=np.empty(count, np.int32),
            parent=np.empty(count, np.int32),
            ends=np.empty(len(batch.chosen), np.int64),
        )
        states = compiled.walk(trie, count, nodes, state, batch.chosen)
        return cls(nodes._replace(ends=nodes.ends[:states]), width)

    @property
    def need(self) -> int:
        """Nodes that tiles must hold, or more if the scored ones need more."""
        return max(self.tokens, math.ceil(self.states / SCORED_SHARE))

    @property
    def contexts(self) -> int:
        """Distinct scored prefixes."""
        return len(self.nodes.ends)

    @property
    def states(self) -> int:
        """The same: each has a state."""
        return len(self.nodes.ends)

    @property
    def tokens(self) -> int:
        """Distinct nodes."""
        return len(self.nodes.token)

    def cut(self, group: Group, choice: Choice, pad: int, state: int) -> Iterator[Tile]:
        """Tiles of these sizes, `state` is the number of the first state; a prefix at the edge of two is in both."""
        nodes, path = self.nodes, np.empty(self.width, np.int32)
        start, first, n = 0, 0, self.states
        while start < n:
            again = int(nodes.depth[first])
            need = max(self.tokens - first + again, math.ceil((n - start) / SCORED_SHARE))
            size = choice.sizes[0] if need >= choice.sizes[0] else choice.cover(need)[0]
            scored = int(SCORED_SHARE * size)
            fits = int(np.searchsorted(nodes.ends, first + size - again))
            stop = min(fits, start + scored, n)
            inputs, index = np.empty((size, 2 + self.width), np.int32), np.empty(scored, np.int32)
            compiled.fill_tree(nodes, first, start, stop, pad, path, inputs, index)
            yield Tile(group, size, inputs, index, stop - start, state + start)
            start, first = stop, int(nodes.ends[stop - 1]) + 1


def _room_for(count: int) -> int:
    """Entries of an index of so many, at most half of which are used: a power of two."""
    return 1 << (2 * count).bit_length()


def nodes_of(prefixes: Int32, lengths: Int64, shared: Int64) -> Int32:
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


def filled(values: npt.NDArray, size: int) -> Int32:
    """Zeros added at the end: int32 [size, ...]."""
    filled = np.zeros((size, *values.shape[1:]), np.int32)
    filled[: len(values)] = values
    return filled
