"""Every job: refused where another one writes, whatever that leaves, and at home behind a link."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, start_teacher, write_tiny_teacher
from support.command_lines import ending_of, every_job, needed_flags
from support.generated_trips import write_generated
from support.lattice_city import walk, write_network, write_trips
from support.random_city import write_random_store
from support.runs import train_here
from support.tiny_city import write_tiny_city

from shared import claims, cli, files, teacher_file
from shared.cli import Job
from shared.errors import ConfigError
from student_trainer.__main__ import JOBS as STUDENT
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.tune import folders as tune_folders
from teacher_server.__main__ import JOBS as TEACHER

pytestmark = pytest.mark.integration

SMALL = "model.road_id_dim=8 model.road_attr_dim=2 optim.batch_size=8 runtime.threads=1 log.tensorboard=false"
TRAIN = f"train --data {{store}} --teacher none --out {{out}} optim.epochs=1 {SMALL}"
RECIPE = "train={model: {road_id_dim: 8, road_attr_dim: 2}, optim: {batch_size: 8}, runtime: {threads: 1}}"
INPUTS = {
    "--data": "{store}", "--raw": "{raw}", "--weights": "{weights}", "--trips": "{trips}", "--roads": "{streets}",
    "--teacher": "unix:{socket}", "--evaluations": "{one},{other}", "--report": "{report}", "--models": "{models}",
    "--checkpoint": "{upstream}", "convert --trips": "{walks}",
}  # fmt: skip
"""What a flag is given, in a job or in any."""
SETTINGS = {
    "demo-city": "columns=9 rows=9 trips.train=50 trips.val=10 trips.test=10",
    "convert": "network.id=u,v,key",
    "train": f"optim.epochs=1 {SMALL}",
    "sample": "trips=20 max_roads=30 replace=true",
    "generate": "weights={weights} pairs=6",
    "evaluate": "bootstrap.draws=100",
    "compare": "bootstrap.draws=100",
    "pipeline": "pairs=6 bootstrap.draws=100 splits=test search.max_steps=20",
    "tune": "skip=1,2,3 workers=1 epochs=1",
    "pretrain": "n_layer=1 n_head=1 n_embd=8 max_steps=2",
    "export": "n_head=2 grid_rows=4 grid_cols=4",
    "answer": "teacher={teacher}",
}
"""What keeps a job small, or it cannot do without."""
WRITERS = {job.yaml_section: (program, job) for program, job in every_job() if "--out" in {f.name for f in job.flags}}
SUFFIX = {name: ending for name, (_, job) in WRITERS.items() if (ending := ending_of(job)) is not None}
"""Of jobs that write a file."""


def line_of(name: str, job: Job) -> str:
    """A command of the job, small."""
    given = {flag.name: INPUTS.get(f"{name} {flag.name}", INPUTS.get(flag.name, "")) for flag in needed_flags(job)}
    given["--out"] = f"{{out}}{SUFFIX.get(name, '')}"
    assert all(given.values()), f"INPUTS says nothing for one of {given}"
    return " ".join([job.name, *(f"{flag} {value}" for flag, value in given.items()), SETTINGS.get(name, "")])


JOBS = {name: line_of(name, job) for name, (_, job) in WRITERS.items()}
JOBS["train --resume"] = f"{TRAIN} --resume"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """What the jobs read."""
    room = tmp_path_factory.mktemp("room")
    store = write_random_store(room / "store", trips=40)
    vertices = np.repeat(store.network("line_centroid"), 2, axis=0) + np.tile([[0, 0], [1e-4, 1e-4]], (30, 1))
    np.save(room / "store" / "network" / "vertices.npy", vertices)
    np.save(room / "store" / "network" / "vertex_offsets.npy", np.arange(0, 61, 2))
    np.save(room / "store" / "network" / "length.npy", np.full(30, 50.0))
    write_tiny_teacher(room / "teacher.safetensors", tokeniser=store.tokeniser)
    state = {n: torch.from_numpy(a.copy()) for n, a in teacher_file.read(room / "teacher.safetensors")[1].items()}
    torch.save({"model": state, "model_config": {"n_head": 2}}, room / "upstream.pt")
    paths = {name: room / name for name in ("store", "trips", "one", "other", "report", "models", "socket")}
    paths |= {"teacher": room / "teacher.safetensors"}
    paths |= {"raw": write_tiny_city(room / "raw"), "upstream": room / "upstream.pt"}
    walks = [walk(np.random.default_rng(seed), 4) for seed in range(5)]
    paths |= {"streets": write_network(room / "streets.geojson"), "walks": write_trips(room / "walks.csv", walks)}
    assert command("train", paths | {"out": room / "models" / "vanilla"}) == 0
    paths["weights"] = room / "models" / "vanilla" / "checkpoints" / "best.pt"
    write_generated(room / "trips", store, 5)
    for name in ("one", "other"):
        assert command("evaluate", paths | {"out": room / name}, f"name={name}") == 0
    assert command("report", paths | {"out": room / "report"}) == 0
    with start_teacher(room / "teacher.safetensors", listen=f"unix:{room / 'socket'}"):
        yield paths


def command(job: str, paths: dict[str, Path], *more: str) -> int:
    program = WRITERS[job.partition(" ")[0]][0]
    jobs = TEACHER if program == "teacher-server" else STUDENT
    recipe = [RECIPE] if job == "tune" else []
    return cli.main(program, "", jobs, [*(word.format(**paths) for word in JOBS[job].split()), *recipe, *more])


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): files.file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


HOLD = """
import sys
from pathlib import Path
from shared import claims
with getattr(claims, sys.argv[1])(Path(sys.argv[2])):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(job: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed the job's OUT."""
    out = tmp_path / f"out{SUFFIX.get(job, '')}"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "file" if job in SUFFIX else "directory", str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.communicate()


def test_a_job_is_refused_where_another_one_writes(
    job: str,
    holder: subprocess.Popen[str],
    made: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = content(tmp_path)
    capsys.readouterr()
    assert command(job, made | {"out": tmp_path / "out"}) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    (line,) = [line for line in said.splitlines() if line.startswith(("student-trainer", "teacher-server"))]
    assert f"in use by process {holder.pid} on {socket.gethostname()} since 2" in line and "another --out" in line
    assert content(tmp_path) == before


OWN = {"store": "prepare", "models/vanilla": "train --resume", "one": "evaluate"}
"""Places that jobs have made, and which may write there again."""


@pytest.mark.parametrize("place", OWN)
def test_a_job_leaves_alone_what_another_job_has_made(
    job: str, place: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if job in SUFFIX or job == OWN[place]:
        return
    shutil.copytree(made["store"].parent / place, tmp_path / "out")
    before = content(tmp_path)
    capsys.readouterr()
    assert command(job, made | {"out": tmp_path / "out"}) == 2
    assert "choose another --out" in capsys.readouterr().err.splitlines()[-1]
    assert content(tmp_path) == before


def test_a_job_writes_where_a_link_leads(job: str, made: dict[str, Path], tmp_path: Path) -> None:
    """A relative link to what is not there, then, where the job does that, to what it has written."""
    suffix = SUFFIX.get(job, "")
    link, real = tmp_path / "here" / f"out{suffix}", tmp_path / "big" / f"real{suffix}"
    link.parent.mkdir()
    real.parent.mkdir()
    link.symlink_to(Path("..") / "big" / real.name)
    schema = cli._import(WRITERS[job.partition(" ")[0]][1].schema)
    again = ["overwrite=true"] if "overwrite" in schema.model_fields else []
    passes = [(True, list[str]())] + [(False, again)] * (job != "tune")  # whose processes take their time
    for is_first, more in passes:
        if job == "train" and not is_first:
            real.rename(tmp_path / "first")  # what is there may only be resumed
            real.mkdir()
        assert command(job, made | {"out": tmp_path / "here" / "out"}, *more) == 0
        assert link.is_symlink() and os.readlink(link) == f"../big/{real.name}"
        assert real.is_file() if job in SUFFIX else any(real.iterdir())
        beside = {f"{real.name}.run"} if job == "pretrain" else set()
        assert {path.name for path in real.parent.iterdir()} == {real.name} | beside
        assert [path.name for path in link.parent.iterdir()] == [link.name]
        assert not list(tmp_path.rglob(".*")), "locks and temporary files"


EPOCHS = 12


def words(store: Path, out: Path) -> list[str]:
    """Behind `train`, of a run that takes long enough to meet another one."""
    return TRAIN.replace("optim.epochs=1", f"optim.epochs={EPOCHS}").format(store=store, out=out).split()[1:]


def train(store: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "student_trainer", "train", *words(store, out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.02)


def validations(out: Path) -> list[int]:
    """Steps of the records of epochs."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "val/accuracy" in record]


def test_of_two_trainers_the_second_is_refused_and_the_first_ends_as_if_alone(
    made: dict[str, Path], tmp_path: Path
) -> None:
    train_here(*words(made["store"], tmp_path / "alone"))
    out = tmp_path / "out"
    with train(made["store"], out) as first:
        wait_for(out / "checkpoints" / "last.pt", first)
        first.send_signal(signal.SIGSTOP)  # both are there, however fast the machine is
        try:
            for more in (["--resume"], []):
                with train(made["store"], out, *more) as second:
                    printed, said = second.communicate()
                assert second.returncode == 2 and not printed
                last = said.splitlines()[-1]
                assert f"{out} is in use by process {first.pid} on {socket.gethostname()} since 2" in last
                assert "student_trainer train" in last
        finally:
            first.send_signal(signal.SIGCONT)
        printed, said = first.communicate()
    assert first.returncode == 0, said
    assert len(validations(out)) == EPOCHS and validations(out) == validations(tmp_path / "alone")
    for name in ("last.pt", "best.pt"):
        ours, theirs = (checkpoints.load(path / "checkpoints" / name) for path in (out, tmp_path / "alone"))
        assert all(torch.equal(ours.model[key], theirs.model[key]) for key in theirs.model)
    assert json.loads(printed)["steps"] == validations(out)[-1]
    assert not list(out.rglob(".*"))


def test_a_killed_trainer_is_followed_by_the_next(made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with train(made["store"], out) as first:
        wait_for(out / "checkpoints" / "last.pt", first)
        first.kill()
    assert (out / ".lock").exists()
    with train(made["store"], out, "--resume") as second:
        _, said = second.communicate()
    assert second.returncode == 0, said
    assert len(validations(out)) == EPOCHS
    assert not (out / ".lock").exists()


def test_a_trainer_that_was_killed_before_it_wrote_leaves_an_empty_directory(
    made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text("{}")
    assert command("train", made | {"out": tmp_path / "out"}) == 0


def test_a_bundle_of_a_report_that_is_in_use_has_no_lock_in_it(made: dict[str, Path], tmp_path: Path) -> None:
    assert command("bundle", made | {"out": tmp_path / "a"}) == 0
    with claims.directory(made["report"]):
        assert command("bundle", made | {"out": tmp_path / "b"}) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_linked_checkpoint_has_the_one_before_it(made: dict[str, Path], tmp_path: Path) -> None:
    """Both names of a link would be the newest file."""
    content = checkpoints.load(made["weights"])
    (tmp_path / "last.pt").symlink_to("elsewhere.pt")
    for step in (1, 2):
        content.progress.step = step
        checkpoints.save(tmp_path / "last.pt", content, keep=2)
    assert (tmp_path / "last.pt").is_symlink()
    assert [checkpoints.load(tmp_path / name).progress.step for name in ("last.pt", "last.1.pt")] == [2, 1]


def test_ranks_end_with_one_line_where_another_job_writes(made: dict[str, Path], tmp_path: Path) -> None:
    arguments = [word.format(**made, out=tmp_path / "out") for word in TRAIN.split()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with claims.directory(tmp_path / "out"):
        done = subprocess.run(
            [*launcher, "-m", "student_trainer", *arguments], capture_output=True, text=True, check=False,
            cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    assert done.returncode != 0 and not done.stdout
    assert done.stderr.count(f"in use by process {os.getpid()}") == 1
    with pytest.raises(StopIteration):
        next(tmp_path.rglob("*"))


def test_work_of_a_worker_that_lives_is_not_taken_over(tmp_path: Path) -> None:
    """It was taken for lost since it was silent: its folder stays, the next attempt begins anew."""
    left = tmp_path / "trial_000_distilled_running"
    assert tune_folders.in_use(left) is None
    (left / "seed1").mkdir(parents=True)
    assert tune_folders.in_use(left) is None
    with claims.directory(left / "seed1"):
        assert tune_folders.in_use(left) is not None
        with pytest.raises(ConfigError), claims.directory(left / "seed1"):
            pass
