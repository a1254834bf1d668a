"""Where a result comes from: the machine, the libraries, the source."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import platform
from collections.abc import Collection, Mapping
from typing import Any

import shared
from shared import files

LIBRARIES = ("torch", "numpy", "numba", "scipy", "polars")


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


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def source_digest(deciding: Mapping[str, Collection[str] | None]) -> str:
    """Digest of source files, so that no change of what decides a result can be forgotten.

    An installation without sources has the software's version instead.

    Args:
        deciding: packages, and the modules in them; None: all of the package.
    """
    sources: list[str | bytes] = []
    for package, modules in deciding.items():
        for path in sorted(importlib.resources.files(package).iterdir(), key=lambda path: path.name):
            stem, dot, suffix = path.name.rpartition(".")
            if dot and suffix == "py" and (modules is None or stem in modules):
                sources += [f"{package}.{stem}", path.read_bytes().replace(b"\r\n", b"\n")]
    return files.digest(*sources) if sources else shared.__version__
