"""The wheel of a clean tree, where nothing else is: with each extra alone, and beside folders of the same names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import write_tiny_teacher
from support.installed import Installed, build_wheel, clean_tree, install, pip

from shared.store import Store

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,  # all of it, so that its environments are made once, by one worker
    pytest.mark.timeout(900),  # a dozen commands, each of which imports torch
]

GENERATED = {f"shared/rpc/teacher/v1/teacher_pb2{suffix}" for suffix in (".py", ".pyi", "_grpc.py")}
CITY = ("columns=9", "rows=9", "drivers=10", "weeks=1", "trips={train: 40, val: 10, test: 6}")
SMALL = ("model={road_id_dim: 8, road_attr_dim: 2}", "optim={epochs: 1, batch_size: 16}", "runtime.threads=1")
ANOTHER = "raise SystemExit('the folder in the working directory was imported')\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_tree(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by what the `dev` extra brings, so that no index is needed."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"), "--no-build-isolation")


@pytest.fixture(scope="module")
def environments(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installed]:
    """One for each extra, and one without any."""
    root = tmp_path_factory.mktemp("environments")
    extras = {"bare": (), "teacher": ("teacher",), "trainer": ("trainer",), "report": ("report",), "tune": ("tune",)}
    return {name: install(wheel, root / name, *wanted) for name, wanted in extras.items()}


@pytest.fixture(scope="module")
def work(environments: dict[str, Installed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a city, its store, a teacher, and what looks like an evaluation."""
    work = tmp_path_factory.mktemp("work")
    trainer = environments["trainer"]
    trainer.run("student-trainer", "demo-city", "--out", "raw", *CITY, cwd=work)
    trainer.run("student-trainer", "prepare", "--raw", "raw", "--out", "store", "zones.count=4", cwd=work)
    write_tiny_teacher(work / "teacher.safetensors", tokeniser=Store(work / "store").tokeniser)
    (work / "looked-at").mkdir()
    (work / "looked-at" / "metrics.json").write_text("{}")
    return work


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with packages of the names that this project's have."""
    for name in ("shared", "student_trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(ANOTHER)
    return tmp_path


def names_in(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def assert_same_contents(a: Path, b: Path) -> None:
    with zipfile.ZipFile(a) as ours, zipfile.ZipFile(b) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())
        differing = [name for name in ours.namelist() if ours.read(name) != theirs.read(name)]
        assert [name for name in differing if "dist-info" not in name] == []


def test_the_tree_holds_no_generated_code_and_the_wheel_does(tree: Path, wheel: Path) -> None:
    assert not any((tree / path).exists() for path in GENERATED)
    names = names_in(wheel)
    assert names >= GENERATED
    assert names >= {f"{package}/py.typed" for package in ("shared", "teacher_server", "student_trainer")}
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {
        "shared",
        "teacher_server",
        "student_trainer",
    }


def test_every_module_and_asset_is_in_the_wheel(tree: Path, wheel: Path) -> None:
    packages = ("shared", "teacher_server", "student_trainer")
    files = {str(path.relative_to(tree)) for package in packages for path in (tree / package).rglob("*.*")}
    assert {name for name in files if "__pycache__" not in name} <= names_in(wheel)


def test_an_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    copy = shutil.copytree(tree, tmp_path / "tree")
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=copy, stdout=subprocess.DEVNULL)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert_same_contents(build_wheel(sdist, tmp_path, "--no-build-isolation"), wheel)


def test_the_build_requirements_suffice(tree: Path, wheel: Path, tmp_path: Path) -> None:
    """In an environment that pip makes for the build, of what `build-system` names."""
    if pip("download", "--quiet", "--no-deps", "--dest", tmp_path / "probe", "setuptools>=77.0.1").returncode:
        pytest.skip("pip reaches no index, so that no environment for an isolated build can be made")
    assert_same_contents(build_wheel(tree, tmp_path / "wheel"), wheel)


def test_what_an_extra_does_not_bring(environments: dict[str, Installed]) -> None:
    student = {"polars", "kahip", "scipy", "tensorboard"}
    tuning = {"optuna", "cmaes", "plotly", "sqlalchemy"}
    brought = {name: environment.brought for name, environment in environments.items()}
    assert not any("torch-geometric" in found for found in brought.values())  # imported by tests alone: 1.5 s
    assert not brought["bare"] & (student | tuning | {"torch", "numba", "matplotlib", "wandb"})
    assert not brought["teacher"] & (student | tuning | {"matplotlib", "wandb"})
    assert not brought["trainer"] & (tuning | {"matplotlib", "wandb", "uvloop", "grpcio-reflection"})
    assert not brought["report"] & (tuning | {"wandb"})
    assert "wandb" not in brought["tune"]


def test_teacher_and_trainer_each_in_an_environment_of_its_own(environments: dict[str, Installed], work: Path) -> None:
    """Serve, ask, train, generate, evaluate, report; the teacher has no trainer's packages, and the other way round."""
    teacher, trainer, report, bare = (environments[name] for name in ("teacher", "trainer", "report", "bare"))
    small = ("n_layer=1", "n_head=1", "n_embd=8", "epochs=1", "threads=1")
    teacher.run("teacher-server", "pretrain", "--data", "store", "--out", "pretrained.safetensors", *small, cwd=work)
    listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    server = teacher.start("teacher-server", "serve", "--teacher", "pretrained.safetensors", *listen, cwd=work)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, server.communicate()[1]
        address = json.loads(line)["listening"]
        bare.run("python", "-m", "teacher_server.client.healthcheck", address, cwd=work)
        asked = ("--address", address, "--history", "1,2", "--candidates", "3,4")
        answer, _ = bare.run("teacher-server", "query", *asked, cwd=work)
        assert sum(json.loads(answer)["probabilities"]) == pytest.approx(1, abs=2e-3)
        train = ("train", "--data", "store", "--teacher", address, "--out", "run", *SMALL)
        trained, _ = trainer.run("student-trainer", *train, cwd=work)
        assert json.loads(trained.splitlines()[-1])["best"]["kl"] > 0
    finally:
        server.terminate()
        _, err = server.communicate(timeout=60)
    assert "Traceback" not in err
    weights = ("--weights", "run/checkpoints/best.pt")
    generate = ("generate", "--data", "store", *weights, "--split", "test", "--out", "gen", "pairs=0")
    trainer.run("student-trainer", *generate, cwd=work)
    trainer.run("student-trainer", "evaluate", "--data", "store", "--trips", "gen", "--out", "measured", cwd=work)
    report.run("student-trainer", "report", "--data", "store", "--evaluations", "measured", "--out", "report", cwd=work)
    assert (work / "report" / "report.html").stat().st_size


@pytest.mark.parametrize(
    ("installed", "command", "module", "extra"),
    [
        ("bare", "teacher-server serve --teacher teacher.safetensors", None, "teacher"),
        ("bare", "student-trainer train --data store --out new", None, "trainer"),
        ("trainer", "teacher-server serve --teacher teacher.safetensors", None, "teacher"),
        ("teacher", "student-trainer train --data store --out new", None, "trainer"),
        ("teacher", "student-trainer prepare --raw raw --out new", None, "trainer"),
        ("trainer", "student-trainer tune --data store --out new", "optuna", "tune"),
        ("trainer", "student-trainer report --data store --evaluations looked-at --out new", "matplotlib", "report"),
        ("trainer", "student-trainer pipeline --data store --models run --out new", "matplotlib", "report"),
        ("trainer", "student-trainer train --data store --out logged log.wandb=offline", "wandb", "wandb"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    environments: dict[str, Installed],
    work: Path,
    installed: str,
    command: str,
    module: str | None,
    extra: str,
) -> None:
    program, job, *arguments = command.split()
    out, err = environments[installed].run(program, job, *arguments, cwd=work, code=2)
    (line,) = [line for line in err.splitlines() if line.startswith(f"{program} {job}: ")]
    assert out == "" and "Traceback" not in err
    assert f"this needs the extra [{extra}]: pip install 'lmtad-hoser-distill[{extra}]'" in line
    assert module is None or f"the module {module} is not installed" in line


def test_help_works_without_the_extra(environments: dict[str, Installed], work: Path) -> None:
    for program, jobs in (("teacher-server", ("serve", "query")), ("student-trainer", ("train", "tune"))):
        for job in jobs:
            out, err = environments["bare"].run(program, job, "--help", cwd=work)
            assert f"usage: {program} {job}" in out and "Traceback" not in err


@pytest.mark.parametrize("is_package", [True, False], ids=["package", "folder"])
@pytest.mark.parametrize("package", ["student_trainer", "teacher_server"])
def test_another_shared_in_the_working_directory(
    environments: dict[str, Installed], tmp_path: Path, package: str, is_package: bool
) -> None:
    """A package is refused in one line, and never executed; a folder without __init__.py comes after the real one."""
    (tmp_path / "shared").mkdir()
    if is_package:
        (tmp_path / "shared" / "__init__.py").write_text(ANOTHER)
    environment, program = environments["bare"], package.replace("_", "-")
    _, err = environment.run("python", "-m", package, "--version", cwd=tmp_path, code=2 if is_package else 0)
    if is_package:
        (line,) = err.splitlines()
        assert line.startswith(f"{program}: `shared` would be imported from {tmp_path / 'shared' / '__init__.py'} ")
        assert f"run the command {program} or python -P -m {package}" in line
        imported = environment.run("python", "-c", f"import {package}", cwd=tmp_path, code=1)[1]
        assert imported.splitlines()[-1] == f"ImportError: {line}"
    for command in ((program,), ("python", "-P", "-m", package)):
        assert environment.run(*command, "--version", cwd=tmp_path)[0].startswith(f"{program} ")


def test_a_shared_that_another_distribution_has_installed_over_ours(wheel: Path, tmp_path: Path) -> None:
    environment = install(wheel, tmp_path / "environment")
    (ours,) = environment.path.glob("lib/python*/site-packages/shared/__init__.py")
    ours.write_text('"""Things that are shared."""\n')
    _, err = environment.run("student-trainer", "--version", cwd=tmp_path, code=2)
    (line,) = err.splitlines()
    assert f"another distribution has installed its own {ours} over this project's" in line


def test_torchrun_beside_another_shared(environments: dict[str, Installed], elsewhere: Path) -> None:
    (elsewhere / "student_trainer" / "__init__.py").unlink()
    (elsewhere / "student_trainer").rmdir()
    trainer = environments["trainer"]
    launcher = ("python", "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    _, err = trainer.run(*launcher, "-m", "student_trainer", "--version", cwd=elsewhere, code=1)
    assert "student-trainer: `shared` would be imported from" in err and "torchrun --no-python student-trainer" in err
    out, _ = trainer.run(*launcher, "--no-python", trainer.command("student-trainer"), "--version", cwd=elsewhere)
    assert out.startswith("student-trainer ")


def test_processes_that_commands_start_import_this_installation(
    environments: dict[str, Installed], work: Path, elsewhere: Path
) -> None:
    """The partitioner of `prepare` and the workers of `tune`, beside packages called `shared` and `student_trainer`."""
    raw, store = work / "raw", work / "store"
    prepared = ("prepare", "--raw", raw, "--out", "store", "zones.count=3")
    environments["trainer"].run("student-trainer", *prepared, cwd=elsewhere)
    study = ("tune", "--data", store, "--teacher", "none", "--out", "study", "skip=[1,2,3]", "seeds=[1]", "epochs=1")
    small = "train={model: {road_id_dim: 8, road_attr_dim: 2}, runtime: {threads: 1}, log: {tensorboard: false}}"
    environments["tune"].run("student-trainer", *study, small, cwd=elsewhere)
    assert list((elsewhere / "study").glob("logs/worker-*.log"))
