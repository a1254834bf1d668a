"""Images built and run without a daemon: Buildah builds, runc runs, mmdebstrap makes a base that need not be pulled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

TOOLS = ("buildah", "runc", "mmdebstrap")
BASE, PACKAGES = "localhost/base", "python3,python3-venv,ca-certificates"
CONTEXT = ("pyproject.toml", "setup.py", "requirements.lock", "README.md", "LICENSE", ".dockerignore")
FOLDERS = ("proto", "shared", "teacher_server", "student_trainer", "docker")
PATIENCE = 120
TMPFS = ["nosuid", "nodev", "mode=1777"]


def need_tools() -> None:
    """Skips where images cannot be built."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"NOTICE: no image is built here: {', '.join(missing) or 'root'} is missing")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image, and what its configuration says.

    Attributes:
        root: the tree of its files; nothing may be written there.
        config: OCI's: Entrypoint, Cmd, Env, User, WorkingDir; and Docker's Healthcheck.
    """

    root: Path
    config: dict[str, Any]

    def bytes(self) -> int:
        """Of its files."""
        return int(run("du", "-sxb", str(self.root)).split()[0])


class Workshop:
    """Builds in a store of its own below a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options = _storage(folder, "overlay")
        trial = ["buildah", "from", *self._options, "scratch"]
        if subprocess.run(trial, capture_output=True).returncode:
            self._options = _storage(folder, "vfs")  # copies every layer, which takes minutes
        self._context = folder / "context"
        self._context.mkdir()
        for name in CONTEXT:
            shutil.copy(REPOSITORY / name, self._context)
        for name in FOLDERS:
            shutil.copytree(REPOSITORY / name, self._context / name, ignore=shutil.ignore_patterns("__pycache__"))
        archive = folder / "base.tar"
        run("mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES}", debian(), str(archive))
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(archive), "/")
        self._buildah("commit", "--quiet", container, BASE)
        self._buildah("rm", container)
        archive.unlink()

    def build(self, name: str) -> Image:
        """The image of docker/NAME.Dockerfile; packages come from where this machine's pip takes them."""
        shared = [f"--volume={path}:{path}:ro" for path in pip_needs()]
        file = self._context / "docker" / f"{name}.Dockerfile"
        arguments = ["--isolation=chroot", "--layers=false", "--format=docker", f"--build-arg=BASE={BASE}", *shared]
        self._buildah("build", "--quiet", *arguments, f"--file={file}", f"--tag={name}", str(self._context))
        container = self._buildah("from", f"localhost/{name}")
        described = json.loads(self._buildah("inspect", container))
        return Image(Path(self._buildah("mount", container)), described["Docker"]["config"])

    def close(self) -> None:
        """Leaves nothing mounted: the directory can be removed."""
        self._buildah("umount", "--all")

    def _buildah(self, *arguments: str) -> str:
        return run("buildah", arguments[0], *self._options, *arguments[1:])


def _storage(folder: Path, driver: str) -> list[str]:
    return ["--root", str(folder / driver), "--runroot", str(folder / "run"), "--storage-driver", driver]


class Container:
    """A running container: the user, environment and command of its image, its files read-only but for /tmp."""

    def __init__(self, image: Image, folder: Path, command: Sequence[str], mounts: dict[Path, str]) -> None:
        """Starts it, in the network of this machine.

        Args:
            image: what it runs.
            folder: for its bundle and log, made anew.
            command: in place of the image's Cmd.
            mounts: directories of this machine by where they are seen, which ends with :rw if it may be written to.
        """
        folder.mkdir()
        self._state, self.name, self.log = str(folder / "state"), f"test-{os.getpid()}-{folder.name}", folder / "log"
        self._process = _process(image, command)
        specification = _specification(image, self._process, mounts)
        (folder / "config.json").write_text(json.dumps(specification))
        with self.log.open("w") as stream:
            arguments = ["runc", "--root", self._state, "run", "--bundle", str(folder), self.name]
            self.running = subprocess.Popen(arguments, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)

    def wait_for(self, text: str) -> None:
        """Returns when the log holds a text."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.log.read_text():
            assert self.running.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, as its user and with its environment."""
        process = self.log.with_name("process.json")
        process.write_text(json.dumps(self._process | {"args": list(command)}))
        arguments = ["runc", "--root", self._state, "exec", "--process", str(process), self.name]
        return subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def stop(self) -> int:
        """As an orchestrator does: SIGTERM; returns the exit code."""
        run("runc", "--root", self._state, "kill", self.name, "TERM")
        return self.running.wait(PATIENCE)

    def remove(self) -> None:
        """Whatever it does."""
        command = ["runc", "--root", self._state, "delete", "--force", self.name]
        subprocess.run(command, capture_output=True)
        self.running.wait(PATIENCE)


@contextlib.contextmanager
def running(image: Image, folder: Path, command: Sequence[str], mounts: dict[Path, str]) -> Iterator[Container]:
    """A container, until the block ends."""
    container = Container(image, folder, command, mounts)
    try:
        yield container
    finally:
        container.remove()


def _process(image: Image, command: Sequence[str]) -> dict[str, Any]:
    user, group = map(int, image.config["User"].split(":"))
    return {
        "terminal": False,
        "user": {"uid": user, "gid": group},
        "args": [*image.config["Entrypoint"], *command],
        "env": image.config["Env"],
        "cwd": image.config["WorkingDir"],
        "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "ambient", "inheritable")},
        "noNewPrivileges": True,
    }


def _specification(image: Image, process: dict[str, Any], mounts: dict[Path, str]) -> dict[str, Any]:
    volumes = [
        {
            "destination": place.removesuffix(":rw"),
            "type": "bind",
            "source": str(source),
            "options": ["rbind", "rw" if place.endswith(":rw") else "ro"],
        }
        for source, place in mounts.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(image.root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": TMPFS},  # noqa: S108 - its own
            *volumes,
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


def pip_needs() -> list[Path]:
    """What configures this machine's pip, and what it reads, that a build has to see: files, certificates, wheels."""
    listed = run(sys.executable, "-m", "pip", "config", "debug")
    files = [line.strip().partition(", exists: True")[0] for line in listed.splitlines() if ", exists: True" in line]
    values = run(sys.executable, "-m", "pip", "config", "list").replace("'", " ").split()
    places = [value.removeprefix("file://").partition("/simple")[0] for value in values]
    wanted = [Path(text) for text in (*files, *places, "/etc/ssl/certs") if text.startswith("/")]
    return sorted({path for path in wanted if path.exists()})


def debian() -> str:
    """The release of this machine if it is Debian, otherwise the stable one."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release["VERSION_CODENAME"] if release.get("ID") == "debian" else "stable"


def run(*command: str) -> str:
    """Stdout of a command that succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()
