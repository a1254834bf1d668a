"""Nobody ever sees half of a file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from shared import files
from shared.errors import ReportableError


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        temporary.write_text("whole")
    assert content(tmp_path) == {"new/a.txt": "whole"}


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, old: str | None, failure: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)
    with pytest.raises(failure), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert content(tmp_path) == ({"a.txt": old} if old else {})


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "atomic", "é")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "atomic").read_text(encoding="utf-8") == "é"


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "store"
    with files.atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert content(tmp_path) == {"new/store/a": "1"}
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_directory_replaces_all_of_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("0")
    with files.atomic_directory(target) as temporary:
        (temporary / "new").write_text("1")
        assert content(target) == {"old": "0"}
    assert content(tmp_path) == {"store/new": "1"}


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_directory_and_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("0")
    with pytest.raises(failure), files.atomic_directory(target) as temporary:
        (temporary / "new").write_text("1")
        raise failure
    assert content(tmp_path) == {"store/old": "0"}


def test_a_directory_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("0")
    replace = os.replace

    def refuse_the_new(source: Path, destination: Path) -> None:
        if (Path(source) / "new").exists():
            raise PermissionError(13, "Permission denied")
        replace(source, destination)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # a system that cannot
    monkeypatch.setattr(os, "replace", refuse_the_new)
    with pytest.raises(ReportableError, match="store: Permission denied"), files.atomic_directory(target) as temporary:
        (temporary / "new").write_text("1")
    assert content(tmp_path) == {"store/old": "0"}


KILLED = """
import os, signal, sys
from pathlib import Path
from shared import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[2]
if moment == "while the old one is aside":
    files._exchange = lambda *_: False
    replace = os.replace
    os.replace = lambda source, target: replace(source, target) if Path(source).name == "store" else die()
with files.atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "new").write_text("1")
    if moment == "while it writes":
        die()
"""


@pytest.mark.parametrize("moment", ["while it writes", "while the old one is aside"])
def test_what_a_killed_process_leaves_is_cleared_and_the_old_directory_is_back(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").write_text("0")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), moment], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(name.startswith(".store.partial-") for name in content(tmp_path))
    assert target.exists() == (moment == "while it writes")
    with pytest.raises(ValueError), files.atomic_directory(target):
        raise ValueError
    assert content(tmp_path) == {"store/old": "0"}


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "store"
    similar = tmp_path / ".store.partial-mine"
    similar.mkdir()
    with files.atomic_directory(target) as slow:
        (slow / "slow").write_text("1")
        with files.atomic_directory(target) as fast:
            (fast / "fast").write_text("1")
        assert content(target) == {"fast": "1"}
        assert (slow / "slow").exists()
    assert content(tmp_path) == {"store/slow": "1"}
    assert similar.is_dir()


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_whatever_is_there_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool, kind: str
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder, target = tmp_path / "folder", tmp_path / "folder" / "store"
    folder.mkdir()
    if kind == "directory":
        target.mkdir()
    else:
        target.touch()
    with files.atomic_directory(target) as temporary:
        (temporary / "new").write_text("1")
    assert content(folder) == {"store/new": "1"}
    assert [path.name for path in folder.iterdir()] == ["store"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_two_directories_take_each_others_name(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert content(tmp_path) == {"a/b": "", "b/a": ""}
    assert not files._exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("writer", [files.atomic_path, files.atomic_directory])
def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path, writer: object) -> None:
    (tmp_path / "file").touch()
    assert callable(writer)
    with (
        pytest.raises(ReportableError, match=r"cannot write .*file/a: .*choose another place"),
        writer(tmp_path / "file" / "a"),
    ):
        pass


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(ReportableError, match="Is a directory"):
        files.write_text(tmp_path / "store", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_json_is_indented_and_has_no_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, 2]}
    assert text.endswith("}\n")
    assert "\n  " in text
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"b": float("nan")})
    assert (tmp_path / "a.json").read_text() == text


def test_digest_tells_parts_apart() -> None:
    assert files.digest("ab", "c") != files.digest("a", "bc") != files.digest("abc")
    assert files.digest("é") == files.digest("é".encode())
    assert files.digest() == hashlib.sha256().hexdigest()
    assert files.digest("ab") == hashlib.sha256(b"\x02" + bytes(7) + b"ab").hexdigest()


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
