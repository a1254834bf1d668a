"""Tiles against their definition: every scored place's own context can be read off the tile that computes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import numpy_layouts

from shared import ragged
from teacher_server.engine import calibrate, layouts, shapes
from teacher_server.engine import tiler as tiler_module
from teacher_server.engine.layouts import Tile
from teacher_server.engine.shapes import OVERHEAD, Buckets, Choice, Group, Kind
from teacher_server.engine.tiler import Tiler, Tiling
from teacher_server.scorer import Batch

SOT, PAD, BLOCK = 9, 10, 14


def make_tiler(prefix_window: int, tile_tokens: int = 64, threads: int = 1) -> Tiler:
    buckets = Buckets.make(BLOCK, 2, 1, prefix_window)
    sizes = {group: group.sizes(tile_tokens) for group in buckets.groups}
    return Tiler(buckets, sizes, OVERHEAD * tile_tokens, threads, PAD)


def make_batch(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Of contexts without SOT, and the scored places of each, ascending."""
    scored = [place for _, places in rows for place in places]
    lengths = np.array([1 + len(tokens) for tokens, _ in rows], np.int64)
    one = np.ones(len(scored), np.int64)
    return Batch(
        tokens=np.array([token for tokens, _ in rows for token in (SOT, *tokens)], np.int32),
        lengths=lengths,
        scored_row=ragged.rows(np.array([len(places) for _, places in rows], np.int64)),
        scored_place=np.array(scored, np.int64),
        candidates=one.astype(np.int32),
        candidate_lengths=one,
        with_mass=one == 0,
    )


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Few tokens, so that contexts share prefixes and repeat."""
    rows = []
    for tokens in draw(st.lists(st.lists(st.integers(0, 2), max_size=BLOCK - 1), max_size=60)):
        inner = draw(st.sets(st.integers(0, len(tokens)), max_size=3)) if draw(st.booleans()) else set()
        rows.append((tokens, sorted(inner | {len(tokens)})))
    return rows


def contexts_of(tile: Tile) -> list[list[int]]:
    """The tokens that each of a tile's states is computed from."""
    found = []
    for number in tile.index[: tile.count].tolist():
        if tile.group.kind is Kind.TREE:
            token, depth, *path = tile.inputs[number].tolist()
            ancestors = path[: depth + 1]
            assert ancestors[-1] == number
            assert tile.inputs[ancestors, 1].tolist() == list(range(depth + 1))
            assert all(tile.inputs[a, 2 : 3 + d].tolist() == ancestors[: d + 1] for d, a in enumerate(ancestors))
            found.append(tile.inputs[ancestors, 0].tolist())
            assert found[-1][-1] == token
        else:
            row, place = divmod(number, tile.group.width)
            found.append(tile.inputs[row, : place + 1].tolist())
    return found


@given(batches(), st.sampled_from([0, 4, 8]), st.sampled_from([20, 64, 512]), st.sampled_from([1, 2]))
def test_every_scored_place_has_the_state_of_its_context(
    rows: list[tuple[list[int], list[int]]], prefix_window: int, tile_tokens: int, threads: int
) -> None:
    tiler = make_tiler(prefix_window, tile_tokens, threads)
    tiling = tiler.tile(make_batch(rows))
    by_state: dict[int, list[int]] = {}
    for tile in tiling.tiles:
        assert tile.size in tiler.sizes[tile.group]
        assert len(tile.inputs) == tile.size
        assert len(tile.index) == expected_index(tile)
        by_state |= dict(enumerate(contexts_of(tile), tile.first))
    assert sorted(by_state) == list(range(tiling.states))
    wanted = [[SOT, *tokens[:place]] for tokens, places in rows for place in places]
    assert [by_state[state] for state in tiling.state.tolist()] == wanted


def expected_index(tile: Tile) -> int:
    """Scored rows are of a fixed number, but for those that are taken from a whole block's output."""
    if tile.group.kind is Kind.TREE:
        return tile.size * 3 // 8
    return max(tile.size, shapes.LEAST_ROWS) if tile.group.kind is Kind.ENDS else tile.count


@given(batches(), batches(), st.sampled_from([0, 8]))
def test_kind_and_width_depend_on_the_context_alone(
    rows: list[tuple[list[int], list[int]]], others: list[tuple[list[int], list[int]]], prefix_window: int
) -> None:
    def groups(batch: list[tuple[list[int], list[int]]]) -> list[Group]:
        tiling = make_tiler(prefix_window).tile(make_batch(batch))
        of_state = {tile.first + i: tile.group for tile in tiling.tiles for i in range(tile.count)}
        return [of_state[state] for state in tiling.state.tolist()]

    alone = [group for row in rows for group in groups([row])]
    assert groups(rows + others)[: len(alone)] == alone


@given(batches())
def test_nothing_is_computed_twice(rows: list[tuple[list[int], list[int]]]) -> None:
    tiling = make_tiler(BLOCK, tile_tokens=4096).tile(make_batch(rows))
    widths = make_tiler(BLOCK).buckets
    prefixes = {
        (int(widths.pad(np.array([1 + len(tokens)]))[0]), *tokens[:place])
        for tokens, places in rows
        for place in places
    }
    nodes = {prefix[:length] for prefix in prefixes for length in range(1, len(prefix) + 1)}
    assert (tiling.states, tiling.contexts, tiling.tokens) == (len(prefixes), len(prefixes), len(nodes))


@given(st.integers(0, 3000), st.integers(1, 600), st.integers(0, 40))
def test_covers_hold_all_and_are_no_dearer_than_the_largest_alone(count: int, largest: int, overhead: int) -> None:
    sizes = tuple(sorted({max(1, largest // 4**i) for i in range(3)}, reverse=True))
    cover = Choice(sizes, overhead).cover(count)
    assert sum(cover) >= count
    assert set(cover) <= set(sizes)
    assert cover == sorted(cover, reverse=True)
    assert sum(cover) + overhead * len(cover) <= -(-count // largest) * (largest + overhead)


def test_covers_of_the_default_sizes() -> None:
    choice = Choice((512, 128, 32), OVERHEAD * 512)
    assert choice.cover(20) == [32]
    assert choice.cover(60) == [32, 32]
    assert choice.cover(100) == [128]
    assert choice.cover(256) == [128, 128]
    assert choice.cover(500) == [512]
    assert choice.cover(530) == [512, 32]


@pytest.mark.parametrize(("threads", "sizes"), [(1, [512]), (2, [128] * 4)])
def test_two_threads_share_what_would_fill_one_tile(threads: int, sizes: list[int]) -> None:
    rows = [([i % 7, i // 7 % 7, i // 49], [3]) for i in range(180)]
    buckets = Buckets.make(BLOCK, 3, 1, 8)
    tiler = Tiler(buckets, {group: group.sizes(512) for group in buckets.groups}, OVERHEAD * 512, threads, PAD)
    assert [tile.size for tile in tiler.tile(make_batch(rows)).tiles] == sizes


def test_no_batch_no_tiles() -> None:
    tiling = make_tiler(8).tile(make_batch([]))
    assert (tiling.tiles, tiling.states, len(tiling.state)) == ([], 0, 0)


@pytest.mark.parametrize("group", make_tiler(8).buckets.groups, ids=str)
def test_samples_are_whole_contexts_everywhere(group: Group) -> None:
    random = np.random.default_rng(0)
    sizes = group.sizes(512)
    contexts = random.integers(0, 8, (group.samples(sizes[-1]), group.width)).astype(np.int32)
    for size in sizes:
        tile, which = calibrate.sample(group, size, contexts, random)
        assert set(which.tolist()) >= set(range(len(contexts)))
        assert len(tile.index) == (expected_index(tile) if group.kind is not Kind.PLACES else size * group.width)
        for found, number in zip(contexts_of(tile), which.tolist(), strict=True):
            row, place = divmod(number, group.width) if group.kind is Kind.PLACES else (number, group.width - 1)
            assert found == contexts[row, : place + 1].tolist()


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 8), st.integers(0, 40), st.integers(1, 5000))
def test_buckets_hold_every_context(
    block: int, smallest: int, per_doubling: int, prefix_window: int, tile_tokens: int
) -> None:
    buckets = Buckets.make(block, smallest, per_doubling, prefix_window)
    assert np.all(np.diff(buckets.widths) > 0)
    assert buckets.widths[-1] == block
    assert np.all(buckets.costs >= np.arange(block + 1))
    assert len(buckets.costs) == block + 1
    for group in buckets.groups:
        assert (group.kind is Kind.TREE) == (0 < prefix_window >= group.width - 1)
        assert all(group.samples(size) >= 1 for size in group.sizes(tile_tokens))


def test_windows_of_common_lengths_need_no_padding() -> None:
    lengths = 1 + np.array([4, 8, 16, 32, 64, 128])
    assert Buckets.make(256, 4, 2, 0).pad(lengths).tolist() == lengths.tolist()


@given(batches(), st.sampled_from([0, 4, 8, BLOCK]), st.sampled_from([20, 64, 512]), st.sampled_from([1, 2]))
def test_tiles_are_those_of_sorted_prefixes(
    rows: list[tuple[list[int], list[int]]], prefix_window: int, tile_tokens: int, threads: int
) -> None:
    """Trees to the number; plain contexts in another order, so that the contexts of the tiles are compared."""
    tiler, batch = make_tiler(prefix_window, tile_tokens, threads), make_batch(rows)
    assert_same(tiler.tile(batch), numpy_layouts.tile(tiler, batch))


@pytest.mark.parametrize("bits", [3, 11, 12, 22, 31])
@pytest.mark.parametrize("tile_tokens", [64, 512, 4096])
def test_tiles_of_large_batches_are_those_of_sorted_prefixes(bits: int, tile_tokens: int) -> None:
    """Tokens of one digit and of several, windows that overlap as a trip's do, tiles with a common edge."""
    random = np.random.default_rng(bits)
    trip = random.integers(1 << bits, size=400).tolist() * 2
    windows = [trip[max(0, i - 3) : i + 1] for i in range(len(trip))]
    wide = [random.integers(2, size=random.integers(BLOCK)).tolist() for _ in range(600)]
    rows = [(tokens, sorted({len(tokens) // 2, len(tokens)})) for tokens in [*windows, *wide]]
    batch = make_batch([rows[i] for i in random.permutation(len(rows))])
    for threads in (1, 2):
        tiler = make_tiler(8, tile_tokens, threads)
        assert_same(tiler.tile(batch), numpy_layouts.tile(tiler, batch))


def assert_same(mine: Tiling, theirs: Tiling) -> None:
    assert (mine.states, mine.contexts, mine.tokens) == (theirs.states, theirs.contexts, theirs.tokens)
    assert [(tile.group, tile.size) for tile in mine.tiles] == [(tile.group, tile.size) for tile in theirs.tiles]
    for one, other in zip(mine.tiles, theirs.tiles, strict=True):
        if one.group.kind is Kind.TREE:
            assert (one.first, one.count) == (other.first, other.count)
            np.testing.assert_array_equal(one.inputs, other.inputs)
            np.testing.assert_array_equal(one.index, other.index)
    for group in {tile.group for tile in mine.tiles} - {Group(Kind.TREE, width) for width in range(BLOCK + 1)}:
        computed = [
            sorted(context for tile in tiles if tile.group == group for context in contexts_of(tile))
            for tiles in (mine.tiles, theirs.tiles)
        ]
        assert computed[0] == computed[1]


def test_equal_contexts_are_merged_and_others_are_not() -> None:
    rows = [([i, i, i], [3]) for i in (0, 0, 5, 6, 5, 5)]
    assert make_tiler(0).tile(make_batch(rows)).states == 3


@pytest.mark.parametrize("prefix_window", [0, BLOCK])
def test_a_collision_of_hashes_costs_time_not_a_state(prefix_window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a factor of 0 everything is looked for in one place."""
    random = np.random.default_rng(0)
    rows = [random.integers(3, size=random.integers(6)).tolist() for _ in range(200)]
    batch = make_batch([(tokens, [len(tokens)]) for tokens in rows])
    monkeypatch.setattr(layouts, "_FACTOR", 0)
    tiler = make_tiler(prefix_window)
    assert_same(tiler.tile(batch), numpy_layouts.tile(tiler, batch))


def test_pairs_are_states_and_tokens_of_candidates() -> None:
    batch = dataclasses.replace(
        make_batch([([1], [0, 1]), ([], [0])]),
        candidates=np.array([5, 6, 7, 8], np.int32),
        candidate_lengths=np.array([2, 1, 1], np.int64),
    )
    tiling = make_tiler(8).tile(batch)
    found = tiler_module.pairs_of(tiling, batch)
    assert found.tolist() == [[0, 5], [0, 6], [1, 7], [0, 8]]
    np.testing.assert_array_equal(found, numpy_layouts.pairs_of(tiling, batch))
