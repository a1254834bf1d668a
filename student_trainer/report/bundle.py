"""`student-trainer bundle`: a report and what it is about in one archive, with a manifest of checksums.

The same content gives the same bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import shared
from shared import claims, files, lock
from shared.errors import ConfigError, FileFormatError
from student_trainer.compare import arms
from student_trainer.report.config import BundleConfig
from student_trainer.runs import layout

FORMAT = "hoser-bundle/1"
MANIFEST = "manifest.json"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member: ZIP knows none before."""


def run(settings: BundleConfig) -> int:
    """Writes the archive; prints what is in it as JSON on stdout.

    Raises:
        ConfigError: the archive's name does not end in .zip, a file or run is named twice, or another job writes it.
        FileFormatError: a file is missing.
    """
    if settings.out.suffix != ".zip":
        raise ConfigError(f"out must end in .zip, got {settings.out}")
    members = dict(_members(settings))
    manifest = {
        "format": FORMAT,
        "software": shared.__version__,
        "files": {
            name: {"sha256": files.file_digest(path), "bytes": path.stat().st_size}
            for name, path in sorted(members.items())
        },
    }
    with (
        claims.file(settings.out),
        files.atomic_path(settings.out) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        _add(archive, MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        for name, path in sorted(members.items()):
            _add(archive, name, path.read_bytes())
    size = settings.out.stat().st_size
    print(json.dumps({"out": str(settings.out), "files": len(members) + 1, "bytes": size}))
    return 0


def _members(settings: BundleConfig) -> Iterator[tuple[str, Path]]:
    """Names in the archive, with forward slashes and below it, and the files."""
    if not (settings.report / layout.REPORT).is_file():
        raise FileFormatError(f"{settings.report} is no report; make one with `student-trainer report`")
    for path in sorted(settings.report.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != lock.NAME:
            yield str(PurePosixPath("report", *path.relative_to(settings.report).parts)), path
    for path, name in zip(settings.weights, arms.unique_names(settings.weights), strict=True):
        yield f"weights/{name}", _existing(path)
    for run_, name in zip(settings.runs, arms.unique_names(settings.runs), strict=True):
        found = [run_ / name for name in layout.BOOKS if (run_ / name).is_file()]
        if not found:
            raise FileFormatError(f"{run_} is no directory that `train` wrote")
        for path in found:
            yield f"runs/{name}/{path.name}", path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileFormatError(f"there is no file {path}")
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
