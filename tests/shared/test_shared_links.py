"""Every writer writes where a link leads, and leaves the link."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_teacher

from shared import claims, config, files, teacher_file
from shared.config import Section
from shared.errors import ReportableError
from student_trainer.generate import records
from student_trainer.train import checkpoint as checkpoints
from teacher_server import cache_file
from teacher_server.rows import Kept


class Settings(Section):
    """For the writer of settings."""

    a: int = 1


KEPT = Kept(*(np.zeros(1, dtype) for dtype in ("i4", "i4", "i4", "u2")))
TRIPS = records.pl.DataFrame(schema=records.SCHEMA)
FILES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: files.write_text(path, "1"),
    "json": lambda path: files.write_json(path, {}),
    "settings": lambda path: config.save(Settings(), "job", path),
    "tensors": lambda path: checkpoints.save_tensors(path, {"a": torch.zeros(1)}),
    "teacher": write_tiny_teacher,
    "answers": lambda path: cache_file.write(path, KEPT, "n"),
    "parquet": lambda path: records.write_parquet(path, TRIPS),
    "csv": lambda path: records.write_csv(path, TRIPS),
}


def write_directory(path: Path) -> None:
    with files.atomic_directory(path) as folder:
        (folder / "a").write_text("1")


def claim_and_write(path: Path) -> None:
    with claims.directory(path):
        files.write_text(path / "a", "1")


DIRECTORIES = {"replaced": write_directory, "claimed": claim_and_write}
WRITERS = FILES | DIRECTORIES


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_target(writer: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if writer in DIRECTORIES else path.write_text("before")


def is_written(writer: str, path: Path) -> bool:
    return (path / "a").read_text() == "1" if writer in DIRECTORIES else path.read_bytes() != b"before"


@pytest.mark.parametrize("is_there", [True, False], ids=["", "dangling"])
@pytest.mark.parametrize("how", ["absolute", "relative", "chain", "parent"])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, writer: str, how: str, is_there: bool) -> None:
    real, place = tmp_path / "big" / "disk" / "real", tmp_path / "here"
    make_target(writer, real)
    if not is_there:
        real.rmdir() if real.is_dir() else real.unlink()
    place.mkdir()
    link = place / "link"
    links = [link]
    if how == "parent":
        (place / "parent").symlink_to("../big/disk")
        link, links = place / "parent" / "real", [place / "parent"]
    elif how == "chain":
        link.symlink_to("../between")
        links.append(tmp_path / "between")
        links[1].symlink_to(real)
    else:
        link.symlink_to(real if how == "absolute" else Path("../big/disk/real"))
    pointed = [os.readlink(path) for path in links]
    WRITERS[writer](link)
    assert [os.readlink(path) for path in links] == pointed
    assert is_written(writer, real)
    assert sorted(path.name for path in real.parent.iterdir()) == ["real"]
    assert sorted(place.iterdir()) == [links[0]]


def test_a_relative_link_is_relative_to_its_own_directory(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "elsewhere")
    WRITERS[writer](Path("..") / "here" / "link")
    assert is_written(writer, tmp_path / "here" / "real")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_links_in_a_circle_are_reported(tmp_path: Path, writer: str) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path in (tmp_path / "a", tmp_path / "a" / "below"):
        with pytest.raises(ReportableError, match=rf"cannot write {path}: the link .*/a leads in a circle"):
            WRITERS[writer](path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_is_not_mounted_is_not_made(tmp_path: Path, writer: str) -> None:
    """A link to a disk that is away: nothing is written to the disk below."""
    (tmp_path / "link").symlink_to("mnt/disk/real")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(ReportableError, match=r"cannot write .*there is no directory .*mnt/disk; make it, or"):
            WRITERS[writer](path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_what_is_removed_is_written_again_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        files.write_text(tmp_path / "link", "1")
        files.remove(tmp_path / "link")
        assert not (tmp_path / "real").exists() and (tmp_path / "link").is_symlink()


def test_a_teacher_behind_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_tiny_teacher(tmp_path / "link")
    assert teacher_file.read(tmp_path / "link")[0] == teacher_file.read(tmp_path / "real")[0]


def test_parts_of_a_run_in_a_linked_directory_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parts").symlink_to("../scratch")
    parts = records.Parts(tmp_path / "out")
    for _ in range(2):
        parts.start("f")
        assert json.loads((tmp_path / "scratch" / "settings.json").read_text()) == {"fingerprint": "f"}
        parts.remove()
        assert (tmp_path / "out" / "parts").is_symlink() and not (tmp_path / "scratch").exists()
