"""Where a result comes from: the machine, the libraries, the source."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.resources
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import shared
from shared import files

ROOTS = ("shared", "student_trainer", "teacher_server")
LIBRARIES = ("torch", "numpy", "numba", "scipy", "polars")

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<package>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|import[ \t]+(?P<modules>[^\n]+))",
    re.MULTILINE,
)
"""A statement that imports: read so, a tenth of the time that a syntax tree takes, for every command needs it."""
COMMENT = re.compile(r"#[^\n]*")

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}
"""Vector instructions by the names that Linux has for them, the widest first."""


def environment() -> dict[str, Any]:
    """System, processors and versions, as JSON."""
    return {
        "software": shared.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def arithmetic() -> str:
    """What decides the last bits of a computation on the CPU, for people: this software's and torch's version, the
    processor, and its widest vector instructions, by which libraries choose their kernels."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    widest = next((label for flag, label in VECTORS.items() if flag in flags), "")
    parts = [f"version {shared.__version__}", f"torch {importlib.metadata.version('torch')}", name, widest]
    return ", ".join(part for part in parts if part)


def versions(program: str) -> str:
    """What `--version` prints: of this software, its commit, torch and the devices, a line each.

    Torch is not imported, which takes seconds: its build says whether it can use an accelerator, the driver which
    accelerators there are.
    """
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    lines = [f"{program} {shared.__version__}", f"commit {commit() or 'unknown'}", f"torch {torch}"]
    return "\n".join([*lines, f"devices {', '.join([f'cpu ({cores()} cores)', *accelerators()])}"])


def commit() -> str:
    """The commit of a checkout, or that pip has installed from; nothing if neither is known."""
    root = Path(shared.__file__).resolve().parent.parent
    if (root / ".git").exists() and (git := shutil.which("git")):
        asked = [git, "-C", str(root), "describe", "--always", "--dirty=, changed since", "--exclude=*", "--abbrev=12"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        return found.stdout.strip()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        origin = importlib.metadata.distribution(shared.DISTRIBUTION).read_text("direct_url.json")
        return str(json.loads(origin or "{}").get("vcs_info", {}).get("commit_id", ""))[:12]
    return ""


def accelerators() -> list[str]:
    """The accelerators that NVIDIA's driver for Linux shows, by name."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                found += [value.strip()] if key == "Model" else []
    return found


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def source_digest(module: str, assets: str = "") -> str:
    """Digest of the source of a module and of all that it imports of its own code base, directly or through others.

    What decides a result is so derived from the code, and no change of it can be forgotten. An installation without
    sources has the software's version instead.

    Args:
        module: full name, as `student_trainer.generate.run`.
        assets: a package whose other files decide, too.
    """
    closure = import_closure(module)
    if assets:
        files_of = (path for path in importlib.resources.files(assets).iterdir() if path.is_file())
        closure |= {f"{assets}/{path.name}": path.read_bytes() for path in files_of}
    sources: list[str | bytes] = []
    for name in sorted(closure):
        sources += [name, closure[name].replace(b"\r\n", b"\n")]
    return files.digest(*sources) if sources else shared.__version__


def import_closure(module: str) -> dict[str, bytes]:
    """The source of a module and of all that it imports of its own code base, anywhere in it, by full name."""
    found: dict[str, bytes] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        source = None if name in found else _source(name)
        if source is not None:
            found[name] = source
            pending += _imports(source)
            pending += [name.rpartition(".")[0]] if "." in name else []
    return found


@functools.cache
def _imports(source: bytes) -> tuple[str, ...]:
    """What a module imports of the code base; also what may be a name in a module rather than a module."""
    found: list[str] = []
    for statement in IMPORT.finditer(source.decode()):
        package, names = statement["package"], COMMENT.sub("", statement["names"] or statement["modules"])
        modules = [words[0] for name in names.strip("()").split(",") if (words := name.split())]
        found += [package, *(f"{package}.{name}" for name in modules)] if package else modules
    return tuple(name for name in found if name.partition(".")[0] in ROOTS)


def _source(name: str) -> bytes | None:
    """The source of a module or of a package's `__init__`; None if there is none of that name."""
    package, *parts = name.split(".")
    root = importlib.resources.files(package)
    candidates = [root.joinpath(*parts, "__init__.py")]
    if parts:
        candidates.append(root.joinpath(*parts[:-1], f"{parts[-1]}.py"))
    return next((path.read_bytes() for path in candidates if path.is_file()), None)
