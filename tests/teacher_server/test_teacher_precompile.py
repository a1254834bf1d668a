"""What is compiled ahead is all that a daemon needs, for any user and any teacher."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, TeacherStarter

from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig

pytestmark = pytest.mark.integration


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_size) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for every processor; the processes that the tests start use it, too."""
    root = tmp_path_factory.mktemp("numba")
    folder = root / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(root))
        patch.setenv("NUMBA_CPU_NAME", "generic")
        command = [sys.executable, "-m", "teacher_server.precompile"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert done.stdout == f"{len(contents(folder))} compiled functions in {folder}\n"
        assert contents(folder)
        yield folder


def ask_everything(address: str) -> None:
    """Windows and whole trips, all tokens of the vocabulary, known and unknown, with and without the mass."""
    client = GrpcTeacher(address, ClientConfig())
    random = np.random.default_rng(0)
    try:
        for mode in HistoryMode:
            for window, lengths in ((0, [3, 1]), (4, [4, 2])):
                positions = len(lengths) if mode is HistoryMode.WINDOW else sum(lengths)
                query = ScoreQuery(
                    mode=mode,
                    history_tokens=random.integers(0, 40, sum(lengths)).astype(np.int32),
                    history_lengths=np.array(lengths, np.int32),
                    candidate_tokens=random.integers(0, 40, 3 * positions).astype(np.int32),
                    candidate_lengths=np.full(positions, 3, np.int32),
                    window=0 if mode is HistoryMode.WINDOW else window,
                    include_candidate_mass=window == 0,
                )
                for _ in range(2):
                    assert len(client.submit(query).result().log_probs) == 3 * positions
    finally:
        client.close()


def test_a_daemon_compiles_nothing_more(filled: Path, running_teacher: TeacherStarter, tiny_teacher: Path) -> None:
    before = contents(filled)
    with running_teacher(tiny_teacher) as server:
        ask_everything(server.address)
    assert contents(filled) == before


def test_every_user_may_read_it_and_none_write(filled: Path) -> None:
    for path in (filled, *filled.iterdir()):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o444 == 0o444
        assert not mode & 0o022


def test_where_nothing_can_be_kept_it_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "teacher_server.precompile"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "file")},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("precompile: compiled functions cannot be kept; NUMBA_CACHE_DIR")
