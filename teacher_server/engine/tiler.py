"""From a batch of contexts to tiles.

    contexts -> by padded length and kind -> layouts of the distinct ones -> tiles, the largest first

Each sequence or node of a tile is computed independently of the others, so an answer has the same bits whatever
shares its batch.

Shapes: R contexts, N context tokens, S scored places, U distinct states.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from teacher_server.engine.layouts import PlainLayout, Tile, TreeLayout
from teacher_server.engine.shapes import SIZES, Buckets, Choice, Group, Kind
from teacher_server.scorer import Batch, Int64


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
        found = list(self._layouts(batch))
        smaller = self._smaller_by([(group, layout.need) for group, _, layout in found])
        tiles: list[Tile] = []
        state = np.empty(len(batch.scored_row), np.int64)
        states = 0
        for group, scored, layout in found:
            choice = self._choice(group, smaller)
            tiles += [
                dataclasses.replace(tile, first=tile.first + states) for tile in layout.cut(group, choice, self.pad)
            ]
            state[scored] = layout.state + states
            states += layout.states
        return Tiling(
            tiles=sorted(tiles, key=lambda tile: -tile.group.unit * tile.size),
            state=state,
            states=states,
            contexts=sum(len(layout.lengths) for _, _, layout in found),
            tokens=sum(layout.tokens for _, _, layout in found),
        )

    def _layouts(self, batch: Batch) -> Iterator[tuple[Group, Int64, PlainLayout | TreeLayout]]:
        """Contexts by group, with the scored places of each."""
        width = self.buckets.pad(batch.lengths)
        inner = batch.scored_place < batch.lengths[batch.scored_row] - 1
        every_place = np.zeros(len(width), np.bool_)
        every_place[batch.scored_row[inner]] = True
        code = (2 * width + (every_place & (width > self.buckets.prefix_width)))[batch.scored_row]
        for number in np.unique(code).tolist():
            width, scored = number // 2, np.flatnonzero(code == number)
            if width <= self.buckets.prefix_width:
                yield Group(Kind.TREE, width), scored, TreeLayout.make(batch, scored, width)
            else:
                group = Group(Kind.PLACES if number % 2 else Kind.ENDS, width)
                yield group, scored, PlainLayout.make(batch, scored, width, self.pad)

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
