"""What is compiled is kept where only this user writes, and is made again whenever it cannot be used."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import logging
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared import caches, compiled

KERNEL = """
from shared.compiled import compiled
from {constants} import FACTOR, called

@compiled
def kernel(x):
    return called(x) * FACTOR
"""
CONSTANTS = """
from shared.compiled import compiled

FACTOR = {factor}

@compiled
def called(x):
    return x + {added}
"""
numbers = itertools.count()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled functions are kept in a test."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The function `kernel` as a new process sees it: modules of the same names, imported anew."""

    def module(name: str, text: str) -> types.ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        os.utime(path, (0, next(numbers)))  # else a change within the clock's resolution is not seen
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, made)
        exec_module = spec.loader.exec_module
        exec_module(made)
        return made

    def fresh(factor: float = 2.0, added: float = 1.0) -> Any:
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            module("constants_of_test", CONSTANTS.format(factor=factor, added=added))
            return module("kernel_of_test", KERNEL.format(constants="constants_of_test")).kernel
        finally:
            sys.dont_write_bytecode = before

    return fresh


def kept(cache: Path, name: str = "kernel_of_test.kernel") -> Path:
    [path] = cache.glob(f"{name}-*")
    return path


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def test_the_next_process_compiles_nothing(cache: Path, load: Callable[..., Any]) -> None:
    first, second = load(), load()
    assert first(3.0) == 8.0 and hits(first) == 0
    assert second(3.0) == 8.0 and hits(second) == 1
    assert second(3) == 8.0 and hits(second) == 1, "other types are another function"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "only a checksum": lambda path: path.write_bytes(path.read_bytes()[:32]),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\x00" + path.read_bytes()[-8:]),
    "sound, but nothing that numba wrote": lambda path: compiled._write(path, b"\x80\x04N."),
    "sound, but no pickle": lambda path: compiled._write(path, b"no pickle"),
    "writable by others": lambda path: path.chmod(0o666),
    "a link": lambda path: (path.rename(path.parent / "moved"), path.symlink_to("moved")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_cannot_be_used_is_made_again(
    cache: Path, load: Callable[..., Any], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    load()(3.0)
    damage(kept(cache))
    again, after = load(), load()
    with caplog.at_level(logging.WARNING):
        assert again(3.0) == 8.0 and hits(again) == 0
    [line] = [record.getMessage() for record in caplog.records]
    assert str(kept(cache)) in line and "compiling kernel_of_test.kernel again" in line
    caplog.clear()
    assert after(3.0) == 8.0 and hits(after) == 1, "the file was not replaced"
    assert not caplog.records


def test_a_file_that_cannot_be_replaced_does_no_harm(
    cache: Path, load: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    load()(3.0)
    path = kept(cache)
    path.unlink()
    path.mkdir()
    assert load()(3.0) == load()(3.0) == 8.0
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1
    assert all(not path.name.startswith(".") for path in cache.iterdir()), "temporary files are left"


def test_a_full_disk_is_said_once(
    cache: Path, load: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert load()(3.0) == load()(3.0) == 8.0
    [line] = [record.getMessage() for record in caplog.records]
    assert f"cannot be kept in {cache} (No space left on device)" in line
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["writable by all", "writable by the group", "another's", "a link", "a file"])
def test_a_directory_that_others_write_to_is_not_used(
    cache: Path, load: Callable[..., Any], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    cache.parent.mkdir()
    if kind == "a file":
        cache.write_bytes(b"")
    elif kind == "a link":
        (cache.parent / "elsewhere").mkdir(mode=0o700)
        cache.symlink_to("elsewhere")
    else:
        cache.mkdir()
        cache.chmod({"writable by all": 0o777, "writable by the group": 0o775}.get(kind, 0o700))
    if kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root gives directories away")
        os.chown(cache, 12345, 12345)
    function = load()
    assert function(3.0) == 8.0 and function(3) == 8.0
    [line] = [record.getMessage() for record in caplog.records]
    assert str(cache) in line and "each process compiles anew" in line
    assert not cache.is_dir() or not list(cache.iterdir())
    assert compiled.directory() is None


@pytest.mark.parametrize("owner", ["this user", "root"])
def test_files_of_this_user_and_of_root_are_trusted(owner: str, tmp_path: Path) -> None:
    status = list(tmp_path.stat())
    status[4] = os.geteuid() if owner == "this user" else 0
    for mode, is_private in ((0o700, True), (0o755, True), (0o775, False), (0o757, False)):
        status[0] = mode
        assert caches.is_private(os.stat_result(status)) == is_private
    status[0], status[4] = 0o700, os.geteuid() + 1
    assert not caches.is_private(os.stat_result(status))


def test_changes_in_other_files_are_noticed(cache: Path, load: Callable[..., Any]) -> None:
    """A constant and a function of another module, which numba's own cache takes for what they were."""
    assert load()(3.0) == 8.0
    assert load(factor=10.0)(3.0) == 40.0
    assert load(added=2.0)(3.0) == 10.0
    unchanged = load()
    assert unchanged(3.0) == 8.0 and hits(unchanged) == 1


def test_variables_of_numba_make_other_code(
    cache: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()(3.0)
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    checked = load()
    assert checked(3.0) == 8.0 and hits(checked) == 0


def test_what_no_process_reads_is_removed(cache: Path, load: Callable[..., Any]) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache / "old").write_bytes(b"")
    os.utime(cache / "old", (0, 0))
    load()(3.0)
    assert not (cache / "old").exists() and kept(cache).exists()


def test_only_numbers_and_compiled_functions_are_frozen(cache: Path) -> None:
    settings = {"added": 1}

    @compiled.compiled
    def kernel(x: int) -> int:
        return x + settings["added"]

    with pytest.raises(TypeError, match=r"settings is a dict; compiled functions use numbers and each other only"):
        kernel(1)
