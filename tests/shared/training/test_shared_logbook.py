"""Reading what a job has recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import FileFormatError
from shared.sinks import WandbRun
from shared.training import logbook


def test_a_last_line_that_a_crash_cut_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for tail in ("", '{"step"', '{"step": 3}'):  # the last one may go on: an incomplete write may go on
        path.write_text(f'{{"step": 1, "train/loss": 0.25}}\n{{"step": 2}}\n{tail}')
        assert logbook.read(path) == [{"step": 1, "train/loss": 0.25}, {"step": 2}]


def test_a_damaged_line_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in ('{"st', "5", '{"train/loss": 1}', '{"step": "x"}', "\x00"):
        path.write_text(f'{{"step": 1}}\n\n{line}\n{{"step": 2}}\n')
        with pytest.raises(FileFormatError, match=r"metrics\.jsonl, line 3 is no record of a step; remove it"):
            logbook.read(path)


def test_a_job_that_goes_on_drops_records_of_later_steps_and_one_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.1}\n{"step": 2}\n{"step": 3}\n{"st')
    book = logbook.Logbook(path, step=2, tensorboard=False, wandb=WandbRun("off", "", "", {}))
    book.write(3, {"train/loss": 0.5})
    book.close()
    assert logbook.read(path) == [{"step": 1, "train/loss": 0.1}, {"step": 2}, {"step": 3, "train/loss": 0.5}]
