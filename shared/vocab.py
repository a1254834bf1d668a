"""The vocabulary: cells and special tokens, and the identity that both sides compare."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from shared.arrays import Float64, Int32, Int64
from shared.errors import CompatibilityError, FileFormatError
from shared.files import digest
from shared.grid import Grid


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens 0..cells-1 are cells, then come the special tokens.

    Attributes:
        cells: number of cell tokens.
        pad, eot, sot: ids of the special tokens.
        occupied: int32 [cells], ascending grid cells where only occupied cells have a
            token; None where token = grid cell.
    """

    cells: int
    pad: int
    eot: int
    sot: int
    occupied: Int32 | None = None

    def __post_init__(self) -> None:
        special = (self.pad, self.eot, self.sot)
        if self.cells < 1 or len(set(special)) < 3 or min(special) < self.cells:
            raise FileFormatError(
                f"not a vocabulary: {self.cells} cells with PAD {self.pad}, EOT {self.eot}, SOT {self.sot}; "
                "the special tokens must be distinct and follow the cells"
            )
        if self.occupied is not None and (
            self.occupied.shape != (self.cells,) or not bool(np.all(np.diff(self.occupied) > 0))
        ):
            raise FileFormatError("not a vocabulary: the occupied cells are not one ascending id per token")

    @classmethod
    def full(cls, cells: int) -> Vocabulary:
        """Every grid cell has a token, as in the public LM-TAD: PAD, EOT, SOT follow."""
        return cls(cells, pad=cells, eot=cells + 1, sot=cells + 2)

    @classmethod
    def of_occupied(cls, cells: Int64) -> Vocabulary:
        """Only the given grid cells (in any order, with repeats) have tokens."""
        occupied = np.unique(cells).astype(np.int32)
        n = len(occupied)
        return cls(n, pad=n, eot=n + 1, sot=n + 2, occupied=occupied)

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return max(self.cells - 1, self.pad, self.eot, self.sot) + 1

    def token(self, cell: Int64) -> Int32:
        """Token of each grid cell.

        Raises:
            CompatibilityError: a cell has no token.
        """
        if self.occupied is None:
            token = cell
            known = (cell >= 0) & (cell < self.cells)
        else:
            token = np.searchsorted(self.occupied, cell).clip(max=self.cells - 1)
            known = self.occupied[token] == cell
        if not bool(np.all(known)):
            raise CompatibilityError(
                f"{np.count_nonzero(~known)} of {cell.size} points lie in cells without a token "
                f"(first: cell {cell[~known].flat[0]}); was the vocabulary made for another road network?"
            )
        return token.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Tokeniser:
    """Grid and vocabulary together: latitude and longitude -> token.

    Attributes:
        vocabulary: the token ids.
        grid: the cells on the ground; None where a teacher's file does not know them.
    """

    vocabulary: Vocabulary
    grid: Grid | None

    def tokens(self, lat: Float64, lng: Float64) -> Int32:
        """Token of each point, degrees; raises `CompatibilityError` without a grid."""
        if self.grid is None:
            raise CompatibilityError("the teacher's file has no grid; export it again with --bounds and --cell-size")
        return self.vocabulary.token(self.grid.cell(lat, lng))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything that decides which token a road gets."""
        occupied = self.vocabulary.occupied
        table = b"" if occupied is None else occupied.astype("<i4").tobytes()
        return digest(json.dumps(self.to_dict(), sort_keys=True), table)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the table of occupied cells."""
        v = self.vocabulary
        return {
            "vocabulary": {
                "kind": "full" if v.occupied is None else "occupied",
                "cells": v.cells,
                "pad": v.pad,
                "eot": v.eot,
                "sot": v.sot,
            },
            "grid": None if self.grid is None else self.grid.model_dump(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], occupied: Int32 | None) -> Tokeniser:
        """Inverse of `to_dict`; the table of occupied cells comes beside it.

        Raises:
            FileFormatError: values are missing, or the table is missing or unexpected.
        """
        try:
            v = values["vocabulary"]
            if (v["kind"] == "occupied") != (occupied is not None):
                raise FileFormatError(f"the vocabulary is of kind {v['kind']!r}, but its table of cells does not fit")
            vocabulary = Vocabulary(v["cells"], v["pad"], v["eot"], v["sot"], occupied)
            grid = None if values["grid"] is None else Grid.model_validate(values["grid"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"not a vocabulary: {' '.join(str(error).split())}") from None
        return cls(vocabulary, grid)

    def differences(self, other: Tokeniser) -> list[str]:
        """What differs, as lines `name: mine != theirs`; empty if the fingerprints agree."""
        mine, theirs = _flatten(self.to_dict()), _flatten(other.to_dict())
        names = list(dict.fromkeys([*mine, *theirs]))
        found = [f"{n}: {mine.get(n)} != {theirs.get(n)}" for n in names if mine.get(n) != theirs.get(n)]
        table, other_table = self.vocabulary.occupied, other.vocabulary.occupied
        if table is not None and other_table is not None and len(table) == len(other_table):
            count = np.count_nonzero(table != other_table)
            found += [f"vocabulary.occupied_cells: {count} of {len(table)} differ"] if count else []
        return found


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat
