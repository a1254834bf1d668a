"""Which sizes of tiles and chunks agree in bits, on this device.

Libraries choose their kernels by the shapes, and other kernels sum in other orders. So sizes are used together only
if random contexts in random places were seen to get the same bits from each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from shared.arrays import Int32, Int64
from teacher_server.engine.layouts import Tile, filled, nodes_of
from teacher_server.engine.shapes import SCORED_SHARE, SIZES, Buckets, Group, Kind
from teacher_server.engine.threads import Threads
from teacher_server.lmtad.model import LMTAD

log = logging.getLogger(__name__)

_SEED = 0x7EAC


def tile_sizes(
    model: LMTAD, buckets: Buckets, tile_tokens: int, threads: Threads, dependent: list[str], count: int = SIZES
) -> Mapping[Group, tuple[int, ...]]:
    """Sizes of tile of every group whose states have the same bits as the largest one's.

    They are compared in as few blocks as have all shapes: one where all blocks are alike, and two for a tree,
    as its last one is not. The last block of `Kind.ENDS` is not, either, but its others are those of
    `Kind.PLACES`.

    Args:
        model: on its device.
        buckets: padded lengths.
        tile_tokens: of the largest tile.
        threads: groups at once.
        dependent: gets what has other bits in other places even of the largest tile.
        count: sizes to compare.
    """
    device = model.lm_head.weight.device
    blocks = {group: min(2 if group.kind is Kind.TREE else 1, model.architecture.n_layer) for group in buckets.groups}
    networks = {count: model.shallow(count) for count in set(blocks.values())}
    sizes: dict[Group, tuple[int, ...]] = {}

    def find(group: Group) -> None:
        random = np.random.default_rng(_SEED)
        candidates = group.sizes(tile_tokens, count)
        samples = group.samples(candidates[-1])
        tokens = random.integers(model.architecture.vocab_size, size=(samples, group.width), dtype=np.int32)

        def run(size: int) -> tuple[Tensor, Int64]:
            tile, which = sample(group, size, tokens, random)
            return tile.states(networks[blocks[group]], device), which

        sizes[group] = agreeing(f"{group.kind.value} of {group.width} tokens", candidates, run, dependent)

    threads.each(find, list(blocks))
    for group in blocks:
        if group.kind is Kind.ENDS:
            others = sizes[buckets.group(Kind.PLACES, group.width)]
            sizes[group] = tuple(size for size in sizes[group] if size in others)
    return sizes


@torch.inference_mode()
def chunk_sizes(
    largest: int,
    weight: Tensor,
    function: Callable[[Tensor, Tensor], Tensor],
    with_tokens: bool,
    dependent: list[str],
) -> tuple[int, ...]:
    """Lengths of chunk at which a function of states gives the same bits.

    Args:
        largest: of the lengths to compare.
        weight: [V, D], the head's.
        function: states [m, D], and int64 [n] of which state, or [n, 2] of which state and token -> [n].
        with_tokens: whether it takes tokens.
        dependent: gets "logits" or "normalisers" if bits depend on the place even in the longest chunk.
    """
    random = np.random.default_rng(_SEED)
    candidates = tuple(sorted({max(1, largest // 4**i) for i in range(SIZES)}, reverse=True))
    count = candidates[-1]
    states = torch.from_numpy(random.standard_normal((count, weight.shape[1]), np.float32)).to(weight.device)
    if weight.device.type != "cpu":  # where states keep the weights' dtype
        states = states.to(weight.dtype)
    pairs = np.stack([np.arange(count), random.integers(len(weight), size=count)], 1)
    inputs = pairs if with_tokens else pairs[:, 0]

    def run(size: int) -> tuple[Tensor, Int64]:
        which = random.permutation(np.append(np.arange(count), random.integers(count, size=size - count)))
        return function(states, torch.from_numpy(inputs[which]).to(weight.device)), which

    return agreeing("logits" if with_tokens else "normalisers", candidates, run, dependent)


def agreeing(
    what: str, sizes: tuple[int, ...], run: Callable[[int], tuple[Tensor, Int64]], dependent: list[str]
) -> tuple[int, ...]:
    """The sizes, largest first, that give every sample the bits that the largest gives it.

    Args:
        what: is computed.
        sizes: to compare.
        run: a size -> results [n, ...] and, int64 [n], of which sample each is; the largest has all.
        dependent: gets `what` if even the largest does not give all places the same bits.
    """
    results, which = run(sizes[0])
    reference = results[torch.from_numpy(np.unique(which, return_index=True)[1]).to(results.device)]

    def agrees(results: Tensor, which: Int64) -> bool:
        return torch.equal(results, reference[torch.from_numpy(which).to(results.device)])

    if not agrees(results, which):
        dependent.append(what)
    found = (sizes[0], *(size for size in sizes[1:] if agrees(*run(size))))
    if found != sizes:
        log.info("%s: of sizes %s only %s give the same bits", what, sizes, found)
    return found


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
        return Tile(group, size, tokens, filled(ends, group.most_states(size)), size), order
    nodes = nodes_of(tokens, np.full(rows, width), np.zeros(rows, np.int64))
    scored = int(SCORED_SHARE * size)
    first = np.unique(order, return_index=True)[1]
    chain = random.permutation(np.append(first[:scored], random.integers(rows, size=max(0, scored - k))))
    return Tile(group, size, filled(nodes, size), (width * (chain + 1) - 1).astype(np.int32), scored), order[chain]
