"""From a batch of contexts to tiles.

    contexts -> by padded length and kind -> layouts of the distinct ones -> tiles, the largest first

Each sequence or node of a tile is computed independently of the others, so an answer has the same bits whatever
shares its batch.

Shapes: R contexts, N context tokens, S scored places, U distinct states.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from shared import ragged
from shared.arrays import Int64
from teacher_server.engine import compiled
from teacher_server.engine.compiled import Contexts
from teacher_server.engine.layouts import PlainLayout, Tile, TreeLayout
from teacher_server.engine.shapes import SIZES, Buckets, Choice, Group, Kind
from teacher_server.scorer import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
    """All tiles of a batch.

    Attributes:
        tiles: the largest first.
        state: int64 [S], state of each scored place.
        states: U.
        contexts: distinct contexts of plain tiles, and distinct scored prefixes of trees.
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
        state = np.empty(len(batch.scored_row), np.int64)
        found = list(self._layouts(batch, state))
        smaller = self._smaller_by([(group, layout.need) for group, _, layout in found])
        tiles: list[Tile] = []
        states = 0
        for group, scored, layout in found:
            tiles += layout.cut(group, self._choice(group, smaller), self.pad, states)
            if states:
                state[scored] += states
            states += layout.states
        return Tiling(
            tiles=sorted(tiles, key=lambda tile: -tile.group.unit * tile.size),
            state=state,
            states=states,
            contexts=sum(layout.contexts for _, _, layout in found),
            tokens=sum(layout.tokens for _, _, layout in found),
        )

    @functools.cached_property
    def _width_of(self) -> Int64:
        """Number of the width of each length with SOT: int64 [block size + 1]."""
        widths = np.array(self.buckets.widths, np.int64)
        return np.searchsorted(widths, np.arange(widths[-1] + 1))

    @functools.cached_property
    def _groups(self) -> list[Group]:
        """By the numbers of `compiled.group_places`."""
        found = []
        for width in self.buckets.widths:
            is_tree = width <= self.buckets.prefix_width
            found += [self.buckets.group(Kind.TREE if is_tree else kind, width) for kind in (Kind.ENDS, Kind.PLACES)]
        return found

    def _layouts(self, batch: Batch, state: Int64) -> Iterator[tuple[Group, Int64, PlainLayout | TreeLayout]]:
        """Contexts by group, with the scored places of each; `state` receives which of its group's a place has."""
        rows, places, groups = len(batch.lengths), len(batch.scored_row), self._groups
        trees = sum(group.kind is Kind.TREE for group in groups) // 2
        first, chosen = np.zeros(len(groups) + 1, np.int64), np.empty(places, np.int64)
        starts = ragged.offsets(batch.lengths)[:-1]
        contexts = Contexts(batch.tokens, starts, batch.lengths, batch.scored_row, batch.scored_place, chosen)
        number = np.empty(places, np.int64)
        compiled.group_places(contexts, self._width_of, trees, np.zeros(rows, np.bool_), number, first)
        for group, start, end in zip(groups, first[:-1].tolist(), first[1:].tolist(), strict=True):
            if start < end:
                of_group = contexts._replace(chosen=chosen[start:end])
                layout = TreeLayout if group.kind is Kind.TREE else PlainLayout
                yield group, of_group.chosen, layout.make(of_group, group.width, state)

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


def pairs_of(tiling: Tiling, batch: Batch) -> Int64:
    """State and token of each candidate: int64 [K, 2]."""
    found = np.empty((len(batch.candidates), 2), np.int64)
    compiled.pair(tiling.state, batch.candidates, batch.candidate_lengths, found)
    return found
