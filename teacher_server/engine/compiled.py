"""The compiled half of `layouts.py` and `tiler.py`: what happens to each place and each node, without the interpreter.

No function makes an array: the caller gives what they write to. A hash decides only where something is looked for; no
result depends on it. It is a product with a secret odd number, so that nobody can make many tokens meet in one place.

Shapes: R contexts, N context tokens, S scored places of a batch, g of them in a group, T padded length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shared.arrays import Bool, Int32, Int64
from shared.compiled import compiled_in_place

NONE = -1
ROOT = 0
"""The node above all first tokens; it is no token itself."""
DIGIT_BITS = 11
"""Bits of a token by which nodes are sorted at once."""
DIGITS = 1 << DIGIT_BITS


class Contexts(NamedTuple):
    """Contexts of a batch, and the scored places of a group.

    Attributes:
        tokens: int32 [N].
        starts: int64 [R], where each context begins.
        lengths: int64 [R].
        scored_row, scored_place: int64 [S], as in `scorer.Batch`.
        chosen: int64 [g], ascending: the scored places of the group.
    """

    tokens: Int32
    starts: Int64
    lengths: Int64
    scored_row: Int64
    scored_place: Int64
    chosen: Int64


class Trie(NamedTuple):
    """Distinct prefixes while they are found, one node each; M nodes and the root at most.

    Attributes:
        keys: int64 [power of two], open addressing: parent and token in one number, or NONE.
        values: int32 [the same], node of each key.
        parent, token: int32 [M + 1], of each node.
        child, sibling: int32 [M + 1], its first child and its next sibling, ascending by their tokens, or ROOT.
        sorted: int32 [2, M], nodes by their tokens.
        state: int32 [M + 1], number of a scored node, or NONE.
        node: int32 [g], node of each scored place.
        counts: int32 [DIGITS].
    """

    keys: Int64
    values: Int32
    parent: Int32
    token: Int32
    child: Int32
    sibling: Int32
    sorted: Int32
    state: Int32
    node: Int32
    counts: Int32


class Nodes(NamedTuple):
    """The nodes of a tree, each before its children, these by their tokens: so prefixes are in lexicographic order.

    Attributes:
        token, depth: int32 [M].
        parent: int32 [M], NONE for the first tokens.
        ends: int64 [n], the scored nodes, ascending.
    """

    token: Int32
    depth: Int32
    parent: Int32
    ends: Int64


@compiled_in_place
def group_places(batch: Contexts, width_of: Int64, trees: int, is_inner: Bool, group: Int64, first: Int64) -> None:
    """Sorts the scored places by group: 2 * width's number, + 1 if other places than the ends of its contexts count.

    Args:
        batch: its `chosen` receives the places, group after group, ascending within each.
        width_of: int64 [block size + 1], number of the width of each length.
        trees: widths with a smaller number are trees, whose places are all alike.
        is_inner: bool [R], false; receives whether a place before a context's end counts.
        group: int64 [S], receives the group of each place.
        first: int64 [groups + 1], 0; receives where each group begins.
    """
    for s in range(len(group)):
        r = batch.scored_row[s]
        if batch.scored_place[s] < batch.lengths[r] - 1:
            is_inner[r] = True
    for s in range(len(group)):
        r = batch.scored_row[s]
        width = width_of[batch.lengths[r]]
        group[s] = 2 * width + (1 if is_inner[r] and width >= trees else 0)
        first[group[s] + 1] += 1
    for i in range(1, len(first)):
        first[i] += first[i - 1]
    # Every group's start moves to its end while it is filled, and back.
    for s in range(len(group)):
        batch.chosen[first[group[s]]] = s
        first[group[s]] += 1
    for i in range(len(first) - 1, 0, -1):
        first[i] = first[i - 1]
    first[0] = 0


@compiled_in_place
def prefix_tokens(batch: Contexts) -> int:
    """Tokens of the prefixes that end at the group's scored places."""
    total = 0
    for s in batch.chosen:
        total += batch.scored_place[s] + 1
    return total


@compiled_in_place
def grow(trie: Trie, batch: Contexts, factor: int) -> int:
    """Finds the distinct prefixes that end at the group's scored places, or before them; returns how many.

    Depth after depth: what is looked up at one depth does not wait for each other.
    """
    mask = len(trie.keys) - 1
    nodes = 0
    longest = 0
    for i in range(len(batch.chosen)):
        trie.node[i] = ROOT
        longest = max(longest, batch.scored_place[batch.chosen[i]] + 1)
    for depth in range(longest):
        for i in range(len(batch.chosen)):
            s = batch.chosen[i]
            if depth > batch.scored_place[s]:
                continue
            parent = trie.node[i]
            token = batch.tokens[batch.starts[batch.scored_row[s]] + depth]
            key = np.int64(parent) << 32 | np.int64(token)
            probe = _home(key, factor) & mask
            while trie.keys[probe] != NONE and trie.keys[probe] != key:
                probe = (probe + 1) & mask
            if trie.keys[probe] == NONE:
                nodes += 1
                trie.keys[probe] = key
                trie.values[probe] = nodes
                trie.parent[nodes] = parent
                trie.token[nodes] = token
            trie.node[i] = trie.values[probe]
    return nodes


@compiled_in_place
def _home(key: np.int64, factor: int) -> np.int64:
    """Where a number is looked for first: the upper bits of a product are the better ones."""
    product = np.uint64(key) * np.uint64(factor)
    return np.int64((product ^ (product >> np.uint64(29))) * np.uint64(factor) >> np.uint64(32))


@compiled_in_place
def walk(trie: Trie, count: int, nodes: Nodes, state: Int64, chosen: Int64) -> int:
    """Numbers the nodes of a trie in the order of `Nodes`, and the scored ones.

    Args:
        trie: its prefixes.
        count: of its nodes.
        nodes: receives them.
        state: int64 [S], receives of the scored places of the group which prefix they are.
        chosen: int64 [g], which these are.

    Returns:
        How many prefixes are scored; the rest of `nodes.ends` has no meaning.
    """
    _link(trie, count, _sort(trie, count))
    for node in range(count + 1):
        trie.state[node] = NONE
    for i in range(len(chosen)):
        trie.state[trie.node[i]] = 0
    states = 0
    depth = 0
    node = trie.child[ROOT]
    for number in range(count):
        nodes.token[number] = trie.token[node]
        nodes.depth[number] = depth
        parent = trie.parent[node]
        nodes.parent[number] = trie.values[parent] if parent != ROOT else NONE
        trie.values[node] = number  # the hash has done its work; it has room for every node
        if trie.state[node] != NONE:
            trie.state[node] = states
            nodes.ends[states] = number
            states += 1
        if trie.child[node] != ROOT:
            node = trie.child[node]
            depth += 1
            continue
        while node != ROOT and trie.sibling[node] == ROOT:
            node = trie.parent[node]
            depth -= 1
        node = trie.sibling[node]
    for i in range(len(chosen)):
        state[chosen[i]] = trie.state[trie.node[i]]
    return states


@compiled_in_place
def _sort(trie: Trie, count: int) -> int:
    """Sorts the nodes by their tokens, digit by digit from the lowest; returns which half of `sorted` has them."""
    largest = 0
    for i in range(count):
        trie.sorted[0, i] = i + 1
        largest = max(largest, trie.token[i + 1])
    half = 0
    shift = 0
    while largest >> shift:
        trie.counts[:] = 0
        for node in range(1, count + 1):
            trie.counts[trie.token[node] >> shift & DIGITS - 1] += 1
        before = 0
        for digit in range(DIGITS):
            here = trie.counts[digit]
            trie.counts[digit] = before
            before += here
        for i in range(count):
            node = trie.sorted[half, i]
            digit = trie.token[node] >> shift & DIGITS - 1
            trie.sorted[1 - half, trie.counts[digit]] = node
            trie.counts[digit] += 1
        half = 1 - half
        shift += DIGIT_BITS
    return half


@compiled_in_place
def _link(trie: Trie, count: int, half: int) -> None:
    """Puts every node among its parent's children, the largest tokens first, each before those that are there."""
    for node in range(count + 1):
        trie.child[node] = ROOT
        trie.sibling[node] = ROOT
    for i in range(count - 1, -1, -1):
        node = trie.sorted[half, i]
        parent = trie.parent[node]
        trie.sibling[node] = trie.child[parent]
        trie.child[parent] = node


@compiled_in_place
def fill_tree(
    nodes: Nodes, first: int, start: int, stop: int, pad: int, path: Int32, inputs: Int32, index: Int32
) -> None:
    """Writes the tile of the prefixes `start` ... `stop - 1`; see `layouts.Tile`.

    Args:
        nodes: of the tree.
        first: the first node of the first prefix that no prefix before it has.
        start, stop: the prefixes.
        pad: token of the padding.
        path: int32 [T], for the latest node of each depth.
        inputs: int32 [size, 2 + T], receives token, depth and ancestors of each node: those above the first, then
            the others.
        index: int32, receives the scored nodes.
    """
    width = len(path)
    above = nodes.depth[first]
    moved = above - first
    ancestor = first
    for depth in range(above - 1, -1, -1):
        ancestor = nodes.parent[ancestor]
        path[depth] = ancestor
    rows = nodes.ends[stop - 1] + 1 + moved
    for row in range(rows):
        if row < above:
            node, depth = path[row], row
        else:
            node = row - moved
            depth = nodes.depth[node]
        path[depth] = row
        inputs[row, 0] = nodes.token[node]
        inputs[row, 1] = depth
        for d in range(width):
            inputs[row, 2 + d] = path[d] if d <= depth else 0
    for row in range(rows, len(inputs)):
        inputs[row, 0] = pad
        for d in range(1, width + 2):
            inputs[row, d] = 0
    for i in range(len(index)):
        index[i] = nodes.ends[start + i] + moved if i < stop - start else 0


@compiled_in_place
def find_contexts(batch: Contexts, heads: Int32, rows: Int64, of_place: Int64, factor: int) -> int:
    """Finds the distinct contexts of the group's scored places; returns how many.

    Args:
        batch: the contexts.
        heads: int32 [power of two], 0: open addressing, number of a distinct context + 1.
        rows: int64 [g], receives the row where each distinct context is first.
        of_place: int64 [g], receives which of them each place is in.
        factor: odd.
    """
    mask = len(heads) - 1
    count = 0
    row = NONE
    number = 0
    for i in range(len(batch.chosen)):
        r = batch.scored_row[batch.chosen[i]]
        if r != row:
            row = r
            probe = _hash(batch, r, factor) & mask
            while heads[probe] != 0 and not _are_equal(batch, rows[heads[probe] - 1], r):
                probe = (probe + 1) & mask
            if heads[probe] == 0:
                rows[count] = r
                count += 1
                heads[probe] = count
            number = heads[probe] - 1
        of_place[i] = number
    return count


@compiled_in_place
def _hash(batch: Contexts, row: int, factor: int) -> np.int64:
    start = batch.starts[row]
    found = np.int64(0)
    for i in range(batch.lengths[row]):
        found = _home(found << 32 | np.int64(batch.tokens[start + i]), factor)
    return found


@compiled_in_place
def _are_equal(batch: Contexts, one: int, other: int) -> bool:
    if batch.lengths[one] != batch.lengths[other]:
        return False
    for i in range(batch.lengths[one]):
        if batch.tokens[batch.starts[one] + i] != batch.tokens[batch.starts[other] + i]:
            return False
    return True


@compiled_in_place
def number_places(batch: Contexts, of_place: Int64, numbers: Int32, width: int, places: Int64, state: Int64) -> int:
    """Numbers the distinct scored places of distinct contexts; returns how many.

    Args:
        batch: its `chosen` are the places.
        of_place: int64 [g], distinct context of each.
        numbers: int32 [contexts * T], 0.
        width: T.
        places: int64 [g], receives the distinct ones, context * T + place, ascending.
        state: int64 [S], receives of the places of the group which of these they are.
    """
    for i in range(len(batch.chosen)):
        numbers[of_place[i] * width + batch.scored_place[batch.chosen[i]]] = 1
    count = 0
    for place in range(len(numbers)):
        if numbers[place]:
            numbers[place] = count
            places[count] = place
            count += 1
    for i in range(len(batch.chosen)):
        s = batch.chosen[i]
        state[s] = numbers[of_place[i] * width + batch.scored_place[s]]
    return count


@compiled_in_place
def fill_contexts(batch: Contexts, rows: Int64, pad: int, inputs: Int32) -> None:
    """Writes the contexts of some rows into a tile: int32 [size, T], filled with padding."""
    for i in range(len(inputs)):
        length = batch.lengths[rows[i]] if i < len(rows) else 0
        start = batch.starts[rows[i]] if i < len(rows) else 0
        for j in range(length):
            inputs[i, j] = batch.tokens[start + j]
        for j in range(length, inputs.shape[1]):
            inputs[i, j] = pad


@compiled_in_place
def pair(state: Int64, candidates: Int32, candidate_lengths: Int64, pairs: Int64) -> None:
    """Writes the state and the token of each candidate: int64 [K, 2]."""
    k = 0
    for s in range(len(state)):
        for _ in range(candidate_lengths[s]):
            pairs[k, 0] = state[s]
            pairs[k, 1] = candidates[k]
            k += 1
