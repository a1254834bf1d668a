"""The project's wheel from a clean tree, installed where nothing is but what an extra brings."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "lmtad-hoser-distill"


def clean_tree(to: Path) -> Path:
    """The files that a clone would have, as they are now; skips the test where git does not know them."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split("\0")
    for name in filter(None, names):
        if (source := REPOSITORY / name).exists():
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return to


def pip(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """pip of the running environment; the caller judges the exit code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def build_wheel(source: Path, out: Path, *options: str) -> Path:
    """The wheel of a source tree or an sdist; the tree stays as it is."""
    if source.is_dir():  # setuptools builds in the tree, and takes what an earlier build has left there
        source = Path(shutil.copytree(source, out / "tree"))
    done = pip("wheel", "--no-deps", "--wheel-dir", out, *options, source)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def requirements(requires: list[str], extras: frozenset[str]) -> Iterator[Requirement]:
    """Those that hold on this machine, with the extras."""
    for requirement in map(Requirement, requires):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def closure(project: metadata.Distribution, *extras: str) -> dict[str, metadata.Distribution]:
    """Everything that an installation with these extras brings, by canonical name; the project itself left out."""
    found: dict[str, metadata.Distribution] = {}
    pending, seen = [(PROJECT, frozenset(extras))], set()
    while pending:
        name, wanted = pending.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        distribution = project if name == PROJECT else found.setdefault(name, metadata.distribution(name))
        pending += [
            (canonicalize_name(requirement.name), frozenset(requirement.extras))
            for requirement in requirements(distribution.requires or [], wanted)
        ]
    return found


@dataclasses.dataclass(frozen=True)
class Installed:
    """An environment with the wheel.

    Attributes:
        path: its directory.
        brought: distributions beside the project.
    """

    path: Path
    brought: frozenset[str]

    def command(self, program: str) -> str:
        """The path of a program in it."""
        return str(self.path / "bin" / program)

    def start(self, *command: object, cwd: Path) -> subprocess.Popen[str]:
        """Starts a program of the environment, as a user who has activated nothing."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        program, *arguments = map(str, command)
        return subprocess.Popen(
            [self.command(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *command: object, cwd: Path, code: int = 0) -> tuple[str, str]:
        """Runs a program to its end, which must be this exit code; returns stdout and stderr."""
        process = self.start(*command, cwd=cwd)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{command}: {process.returncode}\n{out}{err}"
        return out, err


def install(wheel: Path, path: Path, *extras: str) -> Installed:
    """A new environment with a wheel and links to what the extras bring, out of the running environment."""
    venv.create(path, with_pip=False, symlinks=True)
    done = pip("--python", path / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = path.glob("lib/python*/site-packages")
    (project,) = (found for found in metadata.distributions(path=[str(site)]) if found.metadata["Name"] == PROJECT)
    brought = closure(project, *extras)
    for distribution in brought.values():
        for source in installed_at(distribution):
            link(source, site)
    return Installed(path, frozenset(brought))


def installed_at(distribution: metadata.Distribution) -> set[Path]:
    """The modules, packages and folders beside them that a distribution consists of."""
    tops = {path.parts[0] for path in distribution.files or () if path.parts[0] not in {"..", "__pycache__"}}
    assert tops, f"{distribution.metadata['Name']} does not say what it has installed"
    return {Path(str(distribution.locate_file(top))) for top in tops}


def link(source: Path, folder: Path) -> None:
    """Makes `source` appear in `folder`; several distributions may share a folder that is no package."""
    if source.is_dir() and not (source / "__init__.py").exists():
        (folder / source.name).mkdir(exist_ok=True)
        for child in source.iterdir():
            if not (folder / source.name / child.name).exists():
                (folder / source.name / child.name).symlink_to(child)
    elif source.exists() and not (folder / source.name).exists():
        (folder / source.name).symlink_to(source)
