"""Tokens against a dictionary, and the identity of a tokeniser."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CompatibilityError, FileFormatError
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary

GRID = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
FULL = Tokeniser(Vocabulary.full(GRID.cells), GRID)
OCCUPIED = Tokeniser(Vocabulary.of_occupied(np.array([3, 5, 8, 39])), GRID)

cell_lists = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30)


def test_full_vocabulary_has_a_token_for_every_cell() -> None:
    vocabulary = Vocabulary.full(12)
    assert (vocabulary.cells, vocabulary.pad, vocabulary.eot, vocabulary.sot, vocabulary.size) == (12, 12, 13, 14, 15)
    tokens = vocabulary.token(np.arange(12))
    assert tokens.dtype == np.int32
    assert tokens.tolist() == list(range(12))


@given(cell_lists)
def test_tokens_number_the_occupied_cells_in_ascending_order(cells: list[int]) -> None:
    vocabulary = Vocabulary.of_occupied(np.array(cells, np.int64))
    expected = {cell: token for token, cell in enumerate(sorted(set(cells)))}
    n = len(expected)
    assert (vocabulary.cells, vocabulary.pad, vocabulary.eot, vocabulary.sot, vocabulary.size) == (
        n,
        n,
        n + 1,
        n + 2,
        n + 3,
    )
    assert vocabulary.token(np.array(cells, np.int64)).tolist() == [expected[cell] for cell in cells]


@given(cell_lists, st.lists(st.integers(-1, 2**31), min_size=1, max_size=10))
def test_cells_without_a_token_are_counted_and_the_first_named(cells: list[int], asked: list[int]) -> None:
    vocabulary = Vocabulary.of_occupied(np.array(cells, np.int64))
    missing = [cell for cell in asked if cell not in cells]
    if not missing:
        vocabulary.token(np.array(asked, np.int64))
        return
    with pytest.raises(CompatibilityError, match=rf"^{len(missing)} of {len(asked)} .* cell {missing[0]}\)"):
        vocabulary.token(np.array(asked, np.int64))


@pytest.mark.parametrize("cell", [-1, 12])
def test_a_full_vocabulary_ends_with_its_cells(cell: int) -> None:
    with pytest.raises(CompatibilityError, match=f"1 of 2 points .* cell {cell}"):
        Vocabulary.full(12).token(np.array([0, cell]))


def test_no_cells_have_no_tokens() -> None:
    assert Vocabulary.full(12).token(np.array([], np.int64)).tolist() == []
    assert OCCUPIED.vocabulary.token(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(
    "values",
    [(0, 0, 1, 2), (-1, 0, 1, 2), (5, 4, 5, 6), (5, 5, 5, 6), (5, 5, 6, 5), (5, 5, 7, 7), (5, 8, 7, 0), (5, -1, 6, 7)],
)
def test_special_tokens_are_distinct_and_follow_the_cells(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(FileFormatError, match="special tokens"):
        Vocabulary(*values)


@pytest.mark.parametrize("values", [(5, 5, 6, 7), (5, 7, 5, 6), (5, 100, 6, 50)])
def test_special_tokens_may_come_in_any_order_and_leave_gaps(values: tuple[int, int, int, int]) -> None:
    assert Vocabulary(*values).size == max(values) + 1


@pytest.mark.parametrize("occupied", [[1, 2], [1, 2, 3, 4], [3, 2, 1], [1, 2, 2], [[1, 2, 3]]])
def test_the_table_is_one_ascending_cell_per_token(occupied: list[Any]) -> None:
    with pytest.raises(FileFormatError, match="occupied cells"):
        Vocabulary(3, 3, 4, 5, np.array(occupied, np.int32))


def test_a_tokeniser_is_grid_and_vocabulary_in_a_row() -> None:
    lat, lng = np.array([37.005, 37.0449]), np.array([-121.965, -121.9251])
    assert GRID.cell(lat, lng).tolist() == [3, 39]
    assert FULL.tokens(lat, lng).tolist() == [3, 39]
    assert OCCUPIED.tokens(lat, lng).tolist() == [0, 3]
    with pytest.raises(CompatibilityError, match="no grid"):
        Tokeniser(FULL.vocabulary, None).tokens(lat, lng)


def changed(tokeniser: Tokeniser, **values: Any) -> Tokeniser:
    """The same tokeniser but for the named values of its vocabulary or grid."""
    in_grid = {name: value for name, value in values.items() if name in Grid.model_fields}
    rest = {name: value for name, value in values.items() if name not in in_grid}
    assert tokeniser.grid is not None
    return Tokeniser(dataclasses.replace(tokeniser.vocabulary, **rest), tokeniser.grid.model_copy(update=in_grid))


CHANGES: dict[str, Any] = {
    "min_lat": 37.001,
    "min_lng": -121.999,
    "max_lat": 37.046,
    "max_lng": -121.924,
    "cell_lat": 0.011,
    "cell_lng": 0.011,
    "rows": 6,
    "cols": 9,
    "centroid": "line",
    "pad": 60,
    "eot": 61,
    "sot": 62,
    "occupied": np.array([3, 5, 9, 39], np.int32),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_changed_value_changes_the_fingerprint_and_is_named(name: str) -> None:
    other = changed(OCCUPIED, **{name: CHANGES[name]})
    assert other.fingerprint != OCCUPIED.fingerprint
    (difference,) = OCCUPIED.differences(other)
    assert name in difference
    if name != "occupied":
        assert difference.endswith(f"!= {CHANGES[name]}")


@given(st.sets(st.sampled_from(list(CHANGES))))
def test_every_difference_is_named_and_nothing_else(names: set[str]) -> None:
    other = changed(OCCUPIED, **{name: CHANGES[name] for name in names})
    named = {line.partition(":")[0].rpartition(".")[2] for line in OCCUPIED.differences(other)}
    assert named == {"occupied_cells" if name == "occupied" else name for name in names}
    assert (other.fingerprint == OCCUPIED.fingerprint) is (not names)


def test_other_kinds_and_a_missing_grid_are_differences() -> None:
    lines = FULL.differences(OCCUPIED)
    assert "vocabulary.kind: full != occupied" in lines
    assert "vocabulary.cells: 40 != 4" in lines
    without = Tokeniser(FULL.vocabulary, None)
    assert "grid.rows: 5 != None" in FULL.differences(without)
    assert "grid.rows: None != 5" in without.differences(FULL)
    assert len({FULL.fingerprint, OCCUPIED.fingerprint, without.fingerprint}) == 3


@pytest.mark.parametrize("tokeniser", [FULL, OCCUPIED, Tokeniser(FULL.vocabulary, None)])
def test_plain_values_make_the_same_tokeniser_again(tokeniser: Tokeniser) -> None:
    values = json.loads(json.dumps(tokeniser.to_dict()))
    again = Tokeniser.from_dict(values, tokeniser.vocabulary.occupied)
    assert again.fingerprint == tokeniser.fingerprint
    assert again.differences(tokeniser) == []
    assert again.grid == tokeniser.grid


def test_fingerprint_is_stable() -> None:
    """Stores and teachers that exist carry it: another value would part them."""
    assert FULL.fingerprint.startswith("ac869e999244d8bd")
    assert OCCUPIED.fingerprint.startswith("0ad5b39457351be1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "vocabulary"),
        ({"vocabulary": {}}, "kind"),
        ({"vocabulary": 3}, "not a vocabulary"),
        ({**FULL.to_dict(), "grid": {}}, "min_lat"),
        ({**FULL.to_dict(), "grid": 3}, "not a vocabulary"),
        ({"vocabulary": FULL.to_dict()["vocabulary"]}, "grid"),
        ({**FULL.to_dict(), "vocabulary": {**FULL.to_dict()["vocabulary"], "pad": 0}}, "special tokens"),
        ({**FULL.to_dict(), "vocabulary": {**FULL.to_dict()["vocabulary"], "cells": "many"}}, "not a vocabulary"),
        (OCCUPIED.to_dict(), "table of cells does not fit"),
    ],
)
def test_malformed_values_are_reported_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as raised:
        Tokeniser.from_dict(values, None)
    assert "\n" not in str(raised.value)


def test_a_table_where_none_belongs_is_refused() -> None:
    with pytest.raises(FileFormatError, match="table of cells does not fit"):
        Tokeniser.from_dict(FULL.to_dict(), OCCUPIED.vocabulary.occupied)
