"""From an upstream checkpoint to a teacher file: parity, vocabulary, grid, refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import reference_path
from support.teacher_files import write_checkpoint

from shared import teacher_file
from shared.config import validate
from shared.errors import CompatibilityError, ConfigError, FileFormatError, ReportableError
from teacher_server.lmtad import export, model
from teacher_server.lmtad.config import ExportConfig
from teacher_server.lmtad.model import LMTAD, Architecture

PORTO = (41.140092, -8.690261, 41.185969, -8.549155)
PORTO_CELL = (0.1 / 110.574, 0.1 / 111.320 / 0.99974)


def run(checkpoint: Path, **settings: Any) -> teacher_file.TeacherHeader:
    out = checkpoint.with_suffix(".teacher")
    export.run(validate(ExportConfig, {"checkpoint": checkpoint, "out": out, **settings}))
    return teacher_file.read_header(out)


@pytest.mark.parametrize("name", ["training_checkpoint", "weights_only"])
def test_logits_are_those_of_the_public_code(name: str, tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    export.run(ExportConfig(checkpoint=reference_path("lmtad", f"{name}.pt"), out=out))
    reference = np.load(reference_path("lmtad", "reference.npz"))
    header, weights = teacher_file.read(out)
    lmtad = model.load(header, weights)
    vocabulary = header.tokeniser.vocabulary
    assert [vocabulary.pad, vocabulary.eot, vocabulary.sot] == reference["special"].tolist()
    for history, length, expected in zip(
        reference["history"], reference["history_length"], reference["last_logits"], strict=True
    ):
        tokens = torch.tensor([[vocabulary.sot, *history[:length]]])
        np.testing.assert_allclose(lmtad(tokens)[0, -1], expected, atol=1e-4)
    logits = lmtad(torch.from_numpy(reference["sequence"])[None])[0]
    np.testing.assert_allclose(logits, reference["sequence_logits"], atol=1e-4)


def test_both_layouts_give_the_same_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("training_checkpoint", "weights_only"):
        checkpoint = reference_path("lmtad", f"{name}.pt")
        export.run(ExportConfig(checkpoint=checkpoint, out=tmp_path / name))
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["revision"] == second["revision"]
    assert first["parameters"] == 41_120
    assert first["cells"] == 99


def test_grid_of_the_porto_teacher(tmp_path: Path) -> None:
    """Its vocabulary has rows * cols + cols + 1 cell tokens."""
    checkpoint = write_checkpoint(
        tmp_path / "c.pt", 8220, model_config={"pad_token": 8217}, dataset_config={"grip_size": (51, 158)}
    )
    header = run(checkpoint, cell_size=list(PORTO_CELL), bounds=list(PORTO))
    vocabulary, grid = header.tokeniser.vocabulary, header.tokeniser.grid
    assert (vocabulary.cells, vocabulary.pad, vocabulary.eot, vocabulary.sot) == (8217, 8217, 8218, 8219)
    assert grid is not None
    assert (grid.rows, grid.cols) == (51, 158)
    lat, lng = 41.15, -8.61
    expected = int((lat - PORTO[0]) / PORTO_CELL[0]) * 158 + int((lng - PORTO[1]) / PORTO_CELL[1])
    assert header.tokeniser.tokens(np.array([lat]), np.array([lng])).tolist() == [expected]


@pytest.mark.parametrize(
    ("pad_token", "grip_size", "options"),
    [
        (12, None, {}),
        (12, (3, 4), {}),
        (8217, (3, 4), {}),  # upstream's default, left as it was
        (8217, "3 4", {}),
        (None, "(3, 4)", {}),
        (None, None, {"grid_rows": 3, "grid_cols": 4}),
        (12, [3, 4], {"grid_rows": 3, "grid_cols": 4}),
    ],
)
def test_special_tokens_follow_from_pad_or_grid(
    tmp_path: Path, pad_token: int | None, grip_size: Any, options: dict[str, int]
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "c.pt", 15, model_config={"pad_token": pad_token}, dataset_config={"grip_size": grip_size}
    )
    vocabulary = run(checkpoint, **options).tokeniser.vocabulary
    assert (vocabulary.cells, vocabulary.pad, vocabulary.eot, vocabulary.sot) == (12, 12, 13, 14)


@pytest.mark.parametrize(
    ("pad_token", "grip_size", "message"),
    [
        (8217, None, "pad_token is 8217 and the grid's shape is unknown"),
        (None, (3, 5), "a grid of 3 x 5 cells"),
        (0, (3, 4), "Pattern-of-Life"),
    ],
)
def test_special_tokens_are_never_guessed(tmp_path: Path, pad_token: int | None, grip_size: Any, message: str) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "c.pt", 15, model_config={"pad_token": pad_token}, dataset_config={"grip_size": grip_size}
    )
    with pytest.raises(FileFormatError, match=message):
        run(checkpoint)
    assert not checkpoint.with_suffix(".teacher").exists()


def test_shape_of_the_exporter_that_writes_it_into_the_model_config(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, model_config={"grip_size": "3 4"})
    assert run(checkpoint).provenance["grid_shape"] == [3, 4]


@pytest.mark.parametrize("value", ["3", "3 4 5", (3,), (3, -4), "-3 4", 7, ("a", "b"), {}])
def test_malformed_shapes_are_reported(value: Any) -> None:
    with pytest.raises(FileFormatError, match="grip_size"):
        export.parse_grip_size(value)


def test_contradicting_shapes_are_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, dataset_config={"grip_size": (3, 4)})
    with pytest.raises(CompatibilityError, match="dataset_config: 3 x 4; --grid-rows and --grid-cols: 4 x 3"):
        run(checkpoint, grid_rows=4, grid_cols=3)


def test_without_bounds_there_is_no_grid_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, dataset_config={"grip_size": (3, 4)})
    with caplog.at_level(logging.WARNING):
        header = run(checkpoint)
    assert header.tokeniser.grid is None
    assert "--bounds and --cell-size" in caplog.text
    assert header.provenance["grid_shape"] == [3, 4]


def test_shape_follows_from_the_bounds_if_nothing_else_says(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, model_config={"pad_token": 12})
    grid = run(checkpoint, bounds=[10.0, 20.0, 10.25, 20.35], cell_size=0.1).tokeniser.grid
    assert grid is not None
    assert (grid.rows, grid.cols) == (3, 4)


@pytest.mark.parametrize(("north", "warns"), [(10.2, True), (10.3, False), (10.375, True)])
def test_an_edge_row_more_or_less_is_the_converters_choice(
    tmp_path: Path, north: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, dataset_config={"grip_size": (3, 4)})
    grid = run(checkpoint, bounds=[10.0, 20.0, north, 20.45], cell_size=0.125).tokeniser.grid
    assert grid is not None
    assert (grid.rows, grid.cols) == (3, 4)
    assert ("the teacher's own 3 x 4 are used" in caplog.text) is warns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": [10.0, 20.0, 10.55, 20.35], "cell_size": 0.1}, "give 6 x 4 cells, .* trained on 3 x 4"),
        ({"bounds": [20.0, 10.0, 20.35, 10.25], "cell_size": 0.05}, "give 8 x 6 cells, .* trained on 3 x 4"),
        ({"bounds": [11.0, 20.0, 10.0, 21.0], "cell_size": 0.1}, "south west north east"),
    ],
)
def test_bounds_that_contradict_the_shape_are_named(tmp_path: Path, settings: Any, message: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, dataset_config={"grip_size": (3, 4)})
    with pytest.raises(CompatibilityError, match=message):
        run(checkpoint, **settings)
    assert not checkpoint.with_suffix(".teacher").exists()


def test_a_grid_that_does_not_fill_the_vocabulary_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, model_config={"pad_token": 12})
    with pytest.raises(CompatibilityError, match="a grid of 3 x 5 has 15 cells, but the vocabulary has 12"):
        run(checkpoint, bounds=[10.0, 20.0, 10.25, 20.45], cell_size=0.1)


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15, model_config={"pad_token": 12})
    checkpoint.with_suffix(".teacher").write_text("mine")
    with pytest.raises(ReportableError, match="overwrite=true"):
        run(checkpoint)
    assert checkpoint.with_suffix(".teacher").read_text() == "mine"
    assert run(checkpoint, overwrite=True).tokeniser.vocabulary.cells == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid_rows": 3}, "grid_rows and grid_cols go together"),
        ({"cell_size": 0.1}, "cell_size and bounds go together"),
        ({"cell_size": [0.1, 0], "bounds": [0, 0, 1, 1]}, "cell_size must be positive"),
        ({"bounds": [0, 0, 1]}, "bounds"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "c.pt", **settings)


def test_an_untied_head_is_stored(tmp_path: Path) -> None:
    architecture = Architecture(1, 2, 4, 6, 15, bias=True)
    config = architecture.to_dict() | {"pad_token": 12}
    untied = LMTAD(architecture, tied_head=False)
    torch.save({"state_dict": untied.state_dict(), "model_config": config}, tmp_path / "c.pt")
    run(tmp_path / "c.pt")
    header, weights = teacher_file.read(tmp_path / "c.teacher")
    tokens = torch.tensor([[14, 3, 4]])
    assert torch.equal(model.load(header, weights)(tokens), untied(tokens))
