"""The fixed shapes that the model computes, as numbers: kinds of contexts, their padded lengths, sizes of tiles.

Everything that touches floating point runs in a tile: a shape that depends on the settings alone, filled up with
padding. There are a few sizes of tile for each kind and padded length. What kind of tile a context is computed in
depends on that context alone.

Shapes: T padded length.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
import numpy.typing as npt

from shared.arrays import Int64

SIZES = 3
"""Sizes of tile, each a quarter of the one before."""
ACCELERATOR_SIZES = 4
"""The same on an accelerator, whose largest tile is far larger than what a lone request needs."""
OVERHEAD = 0.05
"""What a tile takes beside its tokens, as a share of the largest; measured on a CPU."""
SCORED_SHARE = 3 / 8
"""Scored nodes of a tile of a tree; on real trips, windows of four, 30 % of the distinct prefixes are scored."""
LEAST_ROWS = 8
"""Rows of the smallest matrix product; with fewer, other kernels are used, which give other bits."""
ACCELERATOR_LEAST_ENDS = 256
"""Rows of the smallest product in the last block of a tile of ends on an accelerator, where kernels are chosen by steps
of this size: measured on an H100, on which ends of 65 to 182 tokens had no two sizes that agreed."""


class Kind(enum.Enum):
    """How contexts are computed."""

    PLACES = "places"
    """One sequence each, every place."""
    ENDS = "ends"
    """One sequence each, in the last block only the end."""
    TREE = "tree"
    """Short ones: one node for each distinct prefix."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Contexts that may share a tile, by their own properties.

    Attributes:
        kind: how they are computed.
        width: T.
        least_ends: rows of a tile of ends in the last block, at least.
    """

    kind: Kind
    width: int
    least_ends: int = LEAST_ROWS

    def sizes(self, tile_tokens: int, count: int = SIZES) -> tuple[int, ...]:
        """Sizes of their tiles, largest first: contexts, or nodes for a tree; tokens for the largest, sizes to find."""
        tokens = [tile_tokens // 4**i for i in range(count)]
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

    @property
    def columns(self) -> int:
        """Numbers of each row of a tile's inputs: tokens, or a node with its depth and ancestors."""
        return 2 + self.width if self.kind is Kind.TREE else self.width

    def most_states(self, size: int) -> int:
        """States that a tile can give."""
        if self.kind is Kind.TREE:
            return int(SCORED_SHARE * size)
        return max(size, self.least_ends) if self.kind is Kind.ENDS else size * self.width

    def samples(self, size: int) -> int:
        """Whole contexts that a tile has room for."""
        return min(size // self.width, int(SCORED_SHARE * size)) if self.kind is Kind.TREE else size


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The lengths to which contexts are padded on the right, where causal attention cannot see it.

    Attributes:
        widths: ascending; the last is the block size.
        prefix_width: up to this width contexts are computed as a tree.
        least_ends: see `Group`.
    """

    widths: tuple[int, ...]
    prefix_width: int
    least_ends: int = LEAST_ROWS

    @classmethod
    def make(
        cls, block_size: int, smallest: int, per_doubling: int, prefix_window: int, least_ends: int = LEAST_ROWS
    ) -> Buckets:
        """Widths 1 + smallest * 2^(i / per_doubling), so that windows of common lengths need no padding.

        Args:
            block_size: longest context.
            smallest: tokens after SOT in the first bucket.
            per_doubling: buckets between a length and its double.
            prefix_window: tokens after SOT in the last bucket that is a tree; 0: none is.
            least_ends: see `Group`.
        """
        steps = np.arange(1 + per_doubling * int(np.ceil(np.log2(max(block_size / smallest, 1)) + 1)))
        widths = 1 + np.unique(np.floor(smallest * 2.0 ** (steps / per_doubling)).astype(np.int64))
        widths = np.append(widths[widths < block_size], block_size)
        return cls(tuple(widths.tolist()), 1 + prefix_window if prefix_window else 0, least_ends)

    def group(self, kind: Kind, width: int) -> Group:
        """The contexts of a kind and padded length."""
        return Group(kind, width, self.least_ends)

    @property
    def groups(self) -> list[Group]:
        """Every group that a context may be of."""
        trees = [self.group(Kind.TREE, width) for width in self.widths if width <= self.prefix_width]
        kinds = (Kind.PLACES, Kind.ENDS)
        return trees + [self.group(kind, width) for width in self.widths[len(trees) :] for kind in kinds]

    @property
    def costs(self) -> Int64:
        """Width by context length, 0 for none: int64 [block size + 1]."""
        return np.append(0, self.pad(np.arange(1, self.widths[-1] + 1)))

    def pad(self, lengths: npt.NDArray[np.integer]) -> Int64:
        """Width of each context length."""
        widths = np.array(self.widths, np.int64)
        return widths[np.searchsorted(widths, lengths)]


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


def _rounded_up(number: int) -> int:
    return -(-number // LEAST_ROWS) * LEAST_ROWS
