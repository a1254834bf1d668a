"""A disk that is full, and one that takes nothing: each job says so in a line, and what was there before stays.

The disks are real ones: small file systems in memory, which only root may mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_teacher
from support.generated_trips import write_generated
from support.random_city import write_random_store
from support.tiny_city import write_tiny_city

from shared import cli, files, teacher_file
from shared.errors import ReportableError
from shared.store import Store
from student_trainer.__main__ import JOBS as STUDENT
from teacher_server.__main__ import JOBS as TEACHER
from teacher_server.answers import saved
from teacher_server.answers.compiled import Kept

pytestmark = pytest.mark.integration

MIB = 2**20
BALLAST = "ballast"
MOUNT = shutil.which("mount") or "mount"
SMALL = ("model.road_id_dim=8", "model.road_attr_dim=2", "optim.epochs=1", "optim.batch_size=8", "runtime.threads=1")
GRID = "n_head=2 grid_rows=4 grid_cols=4"
GENERATE = "generate --data {store} --weights {run}/checkpoints/best.pt --out {disk}/generated pairs=6"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, of 48 MiB."""
    path = tmp_path_factory.mktemp("disk")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    mounted = subprocess.run([MOUNT, "-t", "tmpfs", "-o", "size=48m", "tmpfs", path], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run([shutil.which("umount") or "umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> dict[str, Path]:
    """What the jobs need, elsewhere."""
    room = tmp_path_factory.mktemp("room")
    store = write_random_store(room / "store")
    write_tiny_teacher(room / "teacher.safetensors", tokeniser=store.tokeniser)
    weights = teacher_file.read(room / "teacher.safetensors")[1]
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    torch.save({"model": state, "model_config": {"n_head": 2}}, room / "upstream.pt")
    train = ["train", "--data", str(room / "store"), "--teacher", "none", *SMALL, "log.tensorboard=false"]
    assert cli.main("student-trainer", "", STUDENT, [*train, "--out", str(room / "run")]) == 0
    write_generated(room / "generated", store, 5)
    raw = write_tiny_city(room / "raw")
    return {"room": room, "store": room / "store", "run": room / "run", "raw": raw, "disk": disk}


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): files.file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != BALLAST
    }


def fill(disk: Path, but: int) -> None:
    """Leaves so many bytes."""
    with open(disk / BALLAST, "wb", buffering=0) as stream:
        try:
            while stream.write(bytes(64 * 1024)) == 64 * 1024:
                pass
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() - but))


def read_only(disk: Path, is_on: bool) -> None:
    subprocess.run([MOUNT, "-o", f"remount,{'ro' if is_on else 'rw'}", disk], check=True)


@pytest.fixture(autouse=True)
def emptied(disk: Path) -> Iterator[None]:
    yield
    read_only(disk, False)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


COMMANDS = {
    "prepare": "prepare --raw {raw} --out {disk}/store",
    "demo-city": "demo-city --out {disk}/city columns=9 rows=9 trips.train=50 trips.val=10 trips.test=10",
    "train": "train --data {store} --teacher none --out {disk}/run --resume",
    "predict": "predict --data {store} --weights {run}/checkpoints/best.pt --out {disk}/p.npz",
    "generate": GENERATE,
    "evaluate": "evaluate --data {store} --trips {room}/generated --out {disk}/evaluation bootstrap.draws=100",
    "pretrain": "pretrain --data {store} --out {disk}/t.safetensors overwrite=true n_layer=1 n_head=1 max_steps=2",
    "export": "export --checkpoint {room}/upstream.pt --out {disk}/t.safetensors overwrite=true " + GRID,
}
AGAIN = {
    "evaluate": ["bins=7"],
    "train": ["optim.epochs=1"],
    "generate": ["seed=1", "out={disk}/other"],
    "prepare": ["grid.cell_size=0.003"],
}
"""What makes a second run write anew."""
DRY = {
    "full": lambda disk: fill(disk, 4096),
    "read-only": lambda disk: read_only(disk, True),
}


def run(job: str, made: dict[str, Path], *more: str) -> int:
    program, jobs = ("teacher-server", TEACHER) if job in ("pretrain", "export") else ("student-trainer", STUDENT)
    settings = [*SMALL, "log.tensorboard=false"] if job == "train" else []
    return cli.main(program, "", jobs, [*COMMANDS[job].format(**made).split(), *settings, *more])


@pytest.mark.parametrize("trouble", DRY)
@pytest.mark.parametrize("job", COMMANDS)
def test_a_job_says_so_in_a_line_and_changes_nothing(
    made: dict[str, Path], disk: Path, job: str, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job, made) == 0
    if job == "train":  # as if it had been stopped
        shutil.copy(disk / "run/checkpoints/last.pt", disk / "run/checkpoints/best.pt")
    before = content(disk)
    assert before
    DRY[trouble](disk)
    capsys.readouterr()
    code = run(job, made, *(setting.format(**made) for setting in AGAIN.get(job, [])))
    printed, said = capsys.readouterr()
    assert code in (1, 2), said
    assert printed == ""
    lines = [line for line in said.splitlines() if line.startswith(("student-trainer", "teacher-server"))]
    assert len(lines) == 1 and str(disk) in lines[0], said
    assert {"full": "No space left", "read-only": "Read-only"}[trouble] in lines[0]
    assert "Traceback" not in said
    now = content(disk)
    assert {name: digest for name, digest in now.items() if not name.startswith("other/")} == before
    assert "other/summary.json" not in now
    assert not list(disk.rglob(".*"))


LARGE = Kept(*(torch.arange(100_000).numpy().astype(dtype) for dtype in ("i4", "i4", "i4", "u2")))
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: files.write_text(path, "x" * MIB),
    "answers": lambda path: saved.write(path, LARGE, "n"),
}


@pytest.mark.parametrize("trouble", DRY)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer(disk: Path, writer: str, trouble: str) -> None:
    path = disk / "file"
    path.write_text("before")
    DRY[trouble](disk)
    with pytest.raises(ReportableError, match=rf"cannot write {path}: (No space left|Read-only)"):
        WRITERS[writer](path)
    assert path.read_text() == "before"
    assert {found.name for found in disk.iterdir()} <= {"file", BALLAST}


def test_the_store_is_read_where_nothing_can_be_written(made: dict[str, Path], disk: Path) -> None:
    shutil.copytree(made["store"], disk / "store")
    read_only(disk, True)
    assert len(Store(disk / "store").trips("train")) == 60
