"""One job at a time writes to a place; a claim ends with its process, and leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from shared import claims, files, lock
from shared.errors import ConfigError, ReportableError

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from shared import claims

kind, out, child = sys.argv[1:]
with getattr(claims, kind)(Path(out)):
    if child == "forked":
        if (pid := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
        print(pid, flush=True)
    elif child == "started":
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
    elif child == "started with every descriptor":
        code = "import time; time.sleep(600)"
        print(subprocess.Popen([sys.executable, "-c", code], close_fds=False).pid, flush=True)
    elif child == "server":
        import multiprocessing
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=time.sleep, args=(600,))
        process.start()
        print(process.pid, flush=True)
    else:
        print("holds", flush=True)
    sys.stdin.read()
"""
OTHER = {"host": "h", "pid": 1, "since": "s", "command": "c"}
CHILDREN = ("forked", "started", "started with every descriptor", "server")
KINDS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {"directory": claims.directory, "file": claims.file}


def hold(out: Path, kind: str = "directory", child: str = "") -> subprocess.Popen[str]:
    """Another process that has claimed a place, until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(out), child],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def held_by(process: subprocess.Popen[str]) -> str:
    return rf"is in use by process {process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d .* UTC \(.*python"


def test_another_process_is_refused_and_told_who_holds_the_place(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "new" / "out"
    with hold(out, kind) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        with (
            pytest.raises(ConfigError, match=held_by(holder) + r".*choose another --out"),
            KINDS[kind](out),
        ):
            pass
        holder.communicate()
    with KINDS[kind](out):
        pass
    assert not list(tmp_path.iterdir()), "directories that were made for nothing"


@pytest.mark.parametrize("link", ["out", "parent"])
def test_it_is_the_same_place_by_another_name(tmp_path: Path, link: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "parent").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to("real")
    name = tmp_path / "out" if link == "out" else tmp_path / "parent" / "real"
    with hold(tmp_path / "real") as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(ConfigError, match="in use"), claims.directory(name):
            pass
        holder.communicate()


def test_a_killed_process_holds_nothing(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    with hold(out, kind) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock" if kind == "directory" else ".out.lock"]
    if kind == "directory":
        assert files.is_empty(out)
    with KINDS[kind](out):
        assert json.loads(next(tmp_path.rglob(".*lock")).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("child", CHILDREN)
def test_children_that_outlive_a_job_do_not_hold_its_place(tmp_path: Path, child: str) -> None:
    with hold(tmp_path / "out", child=child) as holder:
        assert holder.stdout is not None
        outlives = int(holder.stdout.readline())
        with pytest.raises(ConfigError, match=held_by(holder)), claims.directory(tmp_path / "out"):
            pass  # while both live
        holder.kill()
        holder.wait()
        try:
            os.kill(outlives, 0)
            with claims.directory(tmp_path / "out"):
                pass
        finally:
            if child != "server":  # which ends its children with their parent
                os.kill(outlives, signal.SIGKILL)


def _ends_in_the_block(out: Path) -> None:
    """In a forked child: leaves the parent's block."""
    claim = _open[0]
    claim.__exit__(None, None, None)


_open: list[AbstractContextManager[None]] = []


def test_a_forked_child_does_not_end_its_parents_claim(tmp_path: Path) -> None:
    claim = claims.directory(tmp_path / "out")
    claim.__enter__()
    _open[:] = [claim]
    child = multiprocessing.get_context("fork").Process(target=_ends_in_the_block, args=(tmp_path / "out",))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (tmp_path / "out" / ".lock").exists()
    with hold(tmp_path / "out") as other:
        other.communicate()
    assert other.returncode != 0
    claim.__exit__(None, None, None)


def test_a_process_claims_many_places_at_once_and_each_again_but_none_twice(tmp_path: Path) -> None:
    with claims.directory(tmp_path / "a"), claims.directory(tmp_path / "a" / "b"), claims.file(tmp_path / "a" / "c"):
        mine = rf"process {os.getpid()} on"
        with pytest.raises(ConfigError, match=mine), claims.directory(tmp_path / "a" / "b"):
            pass
    for _ in range(300):
        with claims.directory(tmp_path / "a"):
            pass
    assert not lock._held


def test_what_has_been_written_stays_and_the_lock_does_not(tmp_path: Path) -> None:
    with claims.directory(tmp_path / "out"):
        files.write_text(tmp_path / "out" / "a", "1")
    with claims.file(tmp_path / "b"):
        files.write_text(tmp_path / "b", "1")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "out"]


def test_a_directory_that_is_replaced_as_a_whole_is_free_afterwards(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in "12":
        with claims.directory(tmp_path / "out"):
            with files.atomic_directory(tmp_path / "out") as folder:
                (folder / "a").write_text(text)
            with pytest.raises(ConfigError, match="not a store"):
                claims.check(tmp_path / "out", "a store", lambda out: False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
    assert (tmp_path / "out" / "a").read_text() == "2"


@pytest.mark.parametrize("made", [True, False])
def test_a_place_whose_directory_is_just_being_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Where two names cannot be exchanged in one step, there is a moment without the directory."""
    out, move, refused = tmp_path / "out", files._move, []

    def leave() -> None:
        (out / ".lock").unlink()
        with contextlib.suppress(OSError):  # the new directory may be in its place already
            out.rmdir()

    def late(source: Path, target: Path) -> None:
        if made:
            out.mkdir()  # as another process does before it sees that it must not
            (out / ".lock").touch()
            timer = threading.Timer(0.3, leave)
            timer.start()
            move(source, target)
            timer.join()
        else:
            with pytest.raises(ConfigError, match="in use by another process"), claims.directory(out):
                pass
            assert not out.exists()
            move(source, target)
        refused.append(True)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(files, "_move", late)
    out.mkdir()
    (out / "old").touch()
    with files.atomic_directory(out) as folder:
        (folder / "new").touch()
    assert refused == [True]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_what_a_killed_process_had_put_aside_is_back_before_a_place_is_claimed(tmp_path: Path) -> None:
    aside = tmp_path / ".out.replaced-abcd1234" / "out"
    aside.mkdir(parents=True)
    (aside / "years").touch()
    with claims.directory(tmp_path / "out"):
        assert (tmp_path / "out" / "years").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "years"]


def test_the_text_of_a_lock_decides_nothing(tmp_path: Path) -> None:
    """It may be of a process that was killed, or damaged."""
    (tmp_path / "out").mkdir()
    for text in ("", "no JSON", "[]", '{"host": 1}', json.dumps(OTHER)):
        (tmp_path / "out" / ".lock").write_text(text)
        assert claims.holder(tmp_path / "out") is None
        with claims.directory(tmp_path / "out"):
            found = claims.holder(tmp_path / "out")
            assert found is not None and found.holder is not None and found.holder.pid == os.getpid()


def test_passwords_are_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["student-trainer", "tune", "storage.url=postgresql://me:secret@host/name"])
    with claims.directory(tmp_path / "out"):
        text = (tmp_path / "out" / ".lock").read_text()
    assert "secret" not in text and "postgresql://me:***@host/name" in text


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    lock._tell_once.cache_clear()
    living = tmp_path / ".out.partial-abcd1234"
    living.mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with claims.directory(tmp_path / "out"), files.atomic_directory(tmp_path / "out") as folder:
                (folder / "a").touch()
    assert len(caplog.records) == 1 and "nothing keeps a second job out" in caplog.text
    assert living.exists(), "it may be another process's"
    assert (tmp_path / "out" / "a").exists()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    yield


@pytest.mark.usefixtures("full")
def test_a_full_disk_is_reported_and_no_lock_stays(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ReportableError, match=r"cannot write .*out: No space left"), KINDS[kind](tmp_path / "out"):
        pass
    with (
        pytest.raises(ReportableError, match=r"cannot write .*out: No space left"),
        files.atomic_directory(tmp_path / "out"),
    ):
        pass
    assert not list(tmp_path.rglob(".*"))
    with hold(tmp_path / "out", kind) as other:
        assert other.stdout is not None and other.stdout.readline()
        other.communicate()


def test_what_is_no_place_for_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for claim, message in (
        (claims.directory(tmp_path / "file"), "file is not a directory; choose another --out"),
        (claims.file(tmp_path), "is a directory; choose another --out"),
        (claims.directory(tmp_path / "file" / "a"), "cannot write .*file/a: Not a directory"),
    ):
        with pytest.raises(ReportableError, match=message), claim:
            pass


RACE = """
import sys, time
from pathlib import Path
from shared import claims
from shared.errors import ConfigError

out, count = Path(sys.argv[1]), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with claims.directory(out):
            mark = out.parent / "inside"
            mark.open("x").close()  # fails if somebody else is inside
            count += 1
            mark.unlink()
    except ConfigError:
        pass
print(count)
"""


def test_never_two_at_once_however_often_the_file_is_made_and_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "out")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(4)]
    counts = [int(racer.communicate()[0] or -1) for racer in racers]
    assert min(counts) >= 0 and sum(counts) > 0, counts
    assert [racer.returncode for racer in racers] == [0] * 4
    assert [path for path in tmp_path.rglob("*") if path.name != "out"] == []


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mkdir` finds it there, and then looks whether it is a folder: another job has ended in between."""
    out, make, calls = tmp_path / "out", Path.mkdir, []

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", str(path))
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with claims.directory(out):
        assert claims.holder(out) is not None
    assert calls == [out, out] and not out.exists()
