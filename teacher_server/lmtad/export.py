"""`export`: an upstream LM-TAD checkpoint becomes a teacher file.

A checkpoint does not say which token is what, nor where its cells lie. Both are worked out
from what it and the options do say, cross-checked, and refused where that does not suffice:
a wrong grid gives plausible, worthless answers.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import shared
from shared import claims, files, teacher_file
from shared.errors import CompatibilityError, FileFormatError
from shared.grid import Grid
from shared.teacher_file import TeacherHeader, Weights
from shared.vocab import Tokeniser, Vocabulary
from teacher_server.lmtad import checkpoint
from teacher_server.lmtad.checkpoint import Checkpoint
from teacher_server.lmtad.config import OVERWRITE, ExportConfig

log = logging.getLogger(__name__)

SPECIAL_TOKENS = 3
"""PAD, EOT and SOT follow the cells in this order."""


def run(settings: ExportConfig) -> None:
    """Reads the checkpoint, writes the teacher file, prints one line of JSON."""
    with claims.file(settings.out):
        claims.check_file(settings.out, settings.overwrite, OVERWRITE)
        _export(settings)


def _export(settings: ExportConfig) -> None:
    source = checkpoint.read(settings.checkpoint)
    architecture = checkpoint.architecture(source, settings.n_head)
    shape = grid_shape(source, settings)
    vocabulary = find_vocabulary(source, architecture.vocab_size, shape)
    grid = find_grid(vocabulary.cells, shape, settings)
    if grid is None:
        log.warning(
            "%s: the teacher file has no grid, so `train` will refuse it; export again with --bounds and --cell-size",
            settings.out,
        )
    weights: Weights = {name: tensor.numpy() for name, tensor in source.tensors.items()}
    provenance = {
        "made_by": f"export {shared.__version__}",
        "layout": source.layout,
        "checkpoint_sha256": files.file_digest(settings.checkpoint),
        "dataset_class": source.dataset_class,
        "grid_shape": list(shape) if shape else None,
    }
    header = teacher_file.write(settings.out, weights, architecture.to_dict(), Tokeniser(vocabulary, grid), provenance)
    print(json.dumps(summary(settings.out, header, sum(array.size for array in weights.values()))))


def summary(out: Path, header: TeacherHeader, parameters: int) -> dict[str, Any]:
    """What was written, for the line on stdout."""
    vocabulary, grid = header.tokeniser.vocabulary, header.tokeniser.grid
    return {
        "out": str(out),
        "revision": header.revision,
        "fingerprint": header.tokeniser.fingerprint,
        "parameters": parameters,
        "architecture": header.architecture,
        "cells": vocabulary.cells,
        "grid": None if grid is None else grid.model_dump(),
    }


def grid_shape(source: Checkpoint, settings: ExportConfig) -> tuple[int, int] | None:
    """Rows and columns, from the checkpoint or the options; None if neither says.

    Raises:
        CompatibilityError: two of them differ.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, config in (("dataset_config", source.dataset_config), ("model_config", source.model_config)):
        if config.get("grip_size") is not None:  # sic, upstream's spelling
            found[f"the checkpoint's {name}"] = parse_grip_size(config["grip_size"])
    if settings.grid_rows is not None and settings.grid_cols is not None:
        found["--grid-rows and --grid-cols"] = (settings.grid_rows, settings.grid_cols)
    if len(set(found.values())) > 1:
        said = "; ".join(f"{where}: {rows} x {cols}" for where, (rows, cols) in found.items())
        raise CompatibilityError(f"the grid's shape is contradictory: {said}")
    return next(iter(found.values()), None)


def parse_grip_size(value: Any) -> tuple[int, int]:
    """Rows and columns as upstream stores them: a pair, or a text like "51 158" or "(51, 158)"."""
    numbers = re.findall(r"-?\d+", value) if isinstance(value, str) else value
    if isinstance(numbers, list | tuple) and len(numbers) == 2:
        try:
            rows, cols = (int(number) for number in numbers)
        except (TypeError, ValueError):
            rows = cols = 0
        if rows > 0 and cols > 0:
            return rows, cols
    raise FileFormatError(f"the checkpoint's grip_size {value!r} is not a number of rows and columns")


def find_vocabulary(source: Checkpoint, vocab_size: int, shape: tuple[int, int] | None) -> Vocabulary:
    """The vocabulary cells, PAD, EOT, SOT, if the checkpoint confirms that this is its layout.

    Raises:
        FileFormatError: it has another layout, or nothing confirms this one.
    """
    pad = source.model_config.get("pad_token")
    if pad == 0 or source.dataset_class == "POLConfig":
        raise FileFormatError(
            "the checkpoint has the Pattern-of-Life vocabulary (PAD 0, no SOT, places instead of grid cells), "
            "which cannot score roads; use a teacher trained on grid cells"
        )
    cells = vocab_size - SPECIAL_TOKENS
    if pad == cells or (shape is not None and shape[0] * shape[1] == cells):
        return Vocabulary.full(cells)
    grid = "the grid's shape is unknown" if shape is None else f"a grid of {shape[0]} x {shape[1]} cells"
    raise FileFormatError(
        f"cannot tell which tokens are PAD, EOT and SOT: {vocab_size} tokens would be {cells} cells and these three, "
        f"but the checkpoint's pad_token is {pad} and {grid}; give the right --grid-rows and --grid-cols"
    )


def find_grid(cells: int, shape: tuple[int, int] | None, settings: ExportConfig) -> Grid | None:
    """The grid on the ground; None without bounds and cell size.

    The shape that the teacher was trained with wins over the one that follows from the bounds if they
    differ by one edge row or column: converters disagree on whether the northern and eastern bounds
    belong to the grid, and a token depends on the columns, the southern and western bounds and the cell size.

    Raises:
        CompatibilityError: bounds, cell size, shape and vocabulary contradict each other.
    """
    implied = None
    if settings.bounds is not None and settings.cell_sizes is not None:
        implied = _implied_grid(settings.bounds, settings.cell_sizes, settings)
    if shape is not None and implied is not None:
        if abs(shape[0] - implied.rows) > 1 or abs(shape[1] - implied.cols) > 1:
            raise CompatibilityError(
                f"--bounds and --cell-size give {implied.rows} x {implied.cols} cells, "
                f"but the teacher was trained on {shape[0]} x {shape[1]}"
            )
        if shape != (implied.rows, implied.cols):
            log.warning(
                "bounds and cell size give %d x %d cells; the teacher's own %d x %d are used",
                implied.rows, implied.cols, *shape,
            )  # fmt: skip
            implied = implied.model_copy(update={"rows": shape[0], "cols": shape[1]})
    rows_cols = shape or ((implied.rows, implied.cols) if implied else None)
    if rows_cols is not None:
        _check_cells(*rows_cols, cells)
    return implied


def _implied_grid(
    bounds: tuple[float, float, float, float], sizes: tuple[float, float], settings: ExportConfig
) -> Grid:
    try:
        return Grid.from_bounds(bounds, *sizes, settings.centroid)
    except ValueError as error:
        raise CompatibilityError(
            f"--bounds {' '.join(map(str, bounds))} with --cell-size {' '.join(map(str, sizes))} make no grid "
            f"(south west north east, degrees): {' '.join(str(error).split())[-120:]}"
        ) from None


def _check_cells(rows: int, cols: int, cells: int) -> None:
    """Upstream's Porto vocabulary has labels up to rows * cols + cols, of which the last ones are unused."""
    if cells not in (rows * cols, rows * cols + cols + 1):
        raise CompatibilityError(
            f"a grid of {rows} x {cols} has {rows * cols} cells, but the vocabulary has {cells} cell tokens; "
            "check --grid-rows, --grid-cols, --bounds and --cell-size"
        )
