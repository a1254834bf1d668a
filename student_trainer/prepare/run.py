"""`student-trainer prepare`: raw HOSER files -> store.

Nothing is written until everything is known, and the store appears in one step. A store
whose inputs and settings have not changed is left as it is.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

import shared
from shared import files
from shared.errors import DataError
from shared.store import FORMAT, SPLITS
from student_trainer.prepare import collisions, report, zones
from student_trainer.prepare.build import Content, build
from student_trainer.prepare.config import PrepareConfig

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Counts the changes after which the same inputs and settings give another store."""

MANIFEST = "store.json"


def run(config: PrepareConfig) -> int:
    """Writes the store, or finds it up to date, and prints what is in it; returns the exit code.

    Raises:
        DataError: a raw file is missing or malformed, or `out` is something else than a store.
        CompatibilityError: the teacher's grid does not fit the roads.
    """
    try:
        _check_target(config.out)
        inputs = _input_digests(config)
        fingerprint = _fingerprint(config, inputs)
        manifest = _read_current(config.out, fingerprint)
        if manifest is not None:
            log.info("%s is up to date", config.out)
        else:
            manifest = _write(config, build(config), fingerprint, inputs)
            log.info("wrote %s", config.out)
    except OSError as error:
        raise DataError(f"cannot read {config.raw} or write {config.out}: {error}") from None
    print(report.render(manifest))
    return 0


def _check_target(out: Path) -> None:
    """Refuses to replace what is not a store (of any version)."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = _read_manifest(out)
    if manifest is None or not str(manifest.get("format")).startswith(FORMAT.partition("/")[0]):
        raise DataError(f"{out} exists and is not a store, so it is left alone; choose another --out or remove it")


def _read_manifest(out: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _read_current(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a whole store of this fingerprint, or None."""
    manifest = _read_manifest(out)
    if manifest is None or manifest.get("fingerprint") != fingerprint:
        return None
    sizes = manifest["files"].items()
    whole = all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes)
    return manifest if whole else None


def _input_digests(config: PrepareConfig) -> dict[str, str]:
    """SHA-256 of every file that decides what the store holds, by name."""
    if not config.raw.is_dir():
        raise DataError(f"{config.raw} is not a directory; --raw takes one in HOSER format")
    names = ["roadmap.geo", "roadmap.rel", *(f"{split}.csv" for split in SPLITS), zones.PARTITION_FILE]
    paths = {name: config.raw / name for name in names}
    if config.grid.teacher is not None:
        paths["grid.teacher"] = config.grid.teacher
    return {name: files.file_digest(path) for name, path in paths.items() if path.is_file()}


def _fingerprint(config: PrepareConfig, inputs: dict[str, str]) -> str:
    """Digest of what decides the store's content; places do not, so equal cities have equal stores."""
    settings = config.model_dump(mode="json", exclude={"raw": True, "out": True, "grid": {"teacher"}})
    return files.digest(json.dumps([CODE_VERSION, collisions.CELL_SIZES, settings, inputs], sort_keys=True))


def _write(config: PrepareConfig, content: Content, fingerprint: str, inputs: dict[str, str]) -> dict[str, Any]:
    """Writes arrays and manifest; returns the manifest."""
    with files.atomic_directory(config.out) as folder:
        for name, array in content.arrays.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            np.save(path, array, allow_pickle=False)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "software": shared.__version__,
            "settings": config.model_dump(mode="json"),
            **content.facts,
            "inputs": inputs,
            "files": {name: (folder / name).stat().st_size for name in content.arrays},
        }
        files.write_json(folder / MANIFEST, manifest)
    return manifest
