"""torch.compile keeps its machine code where this user alone writes, and trusts nothing that others left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from torch._inductor.runtime.cache_dir_utils import cache_dir

from student_trainer.train import compiling

CODE = (
    "import os; from student_trainer.train import compiling as c; c.use_own_directory(); print(os.environ[c.VARIABLE])"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    monkeypatch.setenv(compiling.VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(compiling.VARIABLE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("kind", ["none", "own", "new", "writable by all", "a file"])
def test_the_directory_is_this_users(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    given = tmp_path / "given"
    if kind in ("own", "writable by all"):
        given.mkdir()
        given.chmod(0o700 if kind == "own" else 0o777)
    elif kind == "a file":
        given.write_bytes(b"")
    if kind != "none":
        monkeypatch.setenv(compiling.VARIABLE, str(given))
    for _ in range(2):  # as each run of a process does
        compiling.use_own_directory()
    used = Path(cache_dir())
    assert used.stat().st_mode & 0o777 == 0o700
    assert used == given if kind in ("own", "new") else used.parent == temporary
    assert [str(given) in record.getMessage() for record in caplog.records] == [True] * (
        kind in ("writable by all", "a file")
    )


def test_a_directory_of_its_own_goes_with_the_process(temporary: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    assert Path(done.stdout.strip()).parent == temporary
    assert not list(temporary.iterdir())
