"""`student-trainer prepare`: raw HOSER files -> store.

The store appears in one step, when it is whole; an interrupted run leaves the older one. Parts whose inputs, settings
and code have not changed are taken over from it, and if that is all of them it is left as it is.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shared
from shared import claims, cli, files
from shared.errors import ConfigError, DataError
from shared.store import FORMAT, SPLITS
from student_trainer.prepare import csv_faults, parts, raw, report, zones
from student_trainer.prepare.build import Builder
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.parts import Parts

log = logging.getLogger(__name__)

MANIFEST = "store.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A store that is up to date.

    Attributes:
        manifest: its manifest.
        seconds: what each part took that had to be made, by name.
    """

    manifest: dict[str, Any]
    seconds: Mapping[str, float]


def run(config: PrepareConfig) -> int:
    """Writes the store, or finds it up to date, and prints what is in it; returns the exit code.

    Raises:
        DataError: a raw file is missing or malformed.
        ConfigError: `out` is something else than a store, or another job writes there.
        CompatibilityError: the teacher's grid does not fit the roads.
    """
    print(report.render(prepare(config).manifest), flush=True)
    log.info("next: %s", _next(config))
    return 0


def _next(config: PrepareConfig) -> str:
    """The command that a new user needs: to train a teacher for the store, or to serve the one whose grid it has."""
    if config.grid.teacher is not None:
        return cli.command("teacher-server", "serve", "--teacher", str(config.grid.teacher))
    teacher = config.out.parent / "teacher.safetensors"
    return cli.command("teacher-server", "pretrain", "--data", str(config.out), "--out", str(teacher))


def prepare(config: PrepareConfig) -> Prepared:
    """Writes the store, or finds it up to date; raises as `run`."""
    try:
        return _prepare(config)
    except OSError as error:
        raise DataError(f"cannot read {config.raw} or write {config.out}: {error}") from None


def _prepare(config: PrepareConfig) -> Prepared:
    _check_raw(config.raw)
    if config.grid.teacher is not None and not config.grid.teacher.is_file():
        raise ConfigError(f"there is no teacher file {config.grid.teacher}; grid.teacher takes one")
    paths = parts.input_paths(config)
    seen = _states(paths)
    inputs = _digests(paths)
    fingerprints = parts.fingerprints(config, inputs)
    if (manifest := _up_to_date(config.out, fingerprints)) is not None:  # needs no claim: a store may be read-only
        return Prepared(manifest, {})
    with claims.directory(config.out):
        claims.check(config.out, "a store", _is_store)
        if (manifest := _up_to_date(config.out, fingerprints)) is not None:  # whoever had it has just ended
            return Prepared(manifest, {})
        return _write(config, paths, seen, inputs, fingerprints)


def _check_raw(folder: Path) -> None:
    """Raises `DataError` unless the raw files are there, none of them compressed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory; --raw takes one in HOSER format")
    absent = [name for name in (*raw.REQUIRED, zones.PARTITION_FILE) if not (folder / name).is_file()]
    packed = {name: command for name in absent if (command := csv_faults.unpacking(folder / name))}
    missing = [name for name in absent if name in raw.REQUIRED or name in packed]
    if missing:
        unpack = f". Compressed files are there, unpack them: {' && '.join(packed.values())}" if packed else ""
        needed = ", ".join(raw.REQUIRED)
        raise DataError(f"{folder} has no {', '.join(missing)}; a directory in HOSER format has {needed}{unpack}")


def _up_to_date(out: Path, fingerprints: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest of a store of which nothing has to be made."""
    manifest = _read_manifest(out)
    if manifest is None or _unchanged(out, fingerprints).keys() != fingerprints.keys():
        return None
    log.info("%s is up to date", out)
    return manifest


def _unchanged(out: Path, fingerprints: Mapping[str, str]) -> Parts:
    """The parts that are there and need not be made."""
    manifest = _read_manifest(out)
    there = parts.read(out) if manifest is not None and manifest.get("format") == FORMAT else {}
    return {name: part for name, part in there.items() if part.fingerprint == fingerprints.get(name)}


def _write(
    config: PrepareConfig,
    paths: Mapping[str, Path],
    seen: Mapping[str, tuple[int, int]],
    inputs: Mapping[str, str],
    fingerprints: Mapping[str, str],
) -> Prepared:
    """Makes what is missing, and puts the store in its place.

    Args:
        paths, seen, inputs: the raw files, their states before they were read, and their digests.
    """
    current = _unchanged(config.out, fingerprints)
    with files.atomic_directory(config.out) as folder:
        for name, part in current.items():
            log.info("%s has not changed", name)
            parts.take_over(part, config.out, folder)
        builder = Builder(config, folder, current, fingerprints)
        builder.build()
        if _states(paths) != seen:
            raise DataError(f"files of {config.raw} changed while they were read; run `prepare` again")
        parts.write(folder, builder.parts)
        manifest = _manifest(config, builder.parts, inputs)
        files.write_json(folder / MANIFEST, manifest)
    log.info("wrote %s", config.out)
    return Prepared(manifest, builder.seconds)


def _is_store(out: Path) -> bool:
    """Of any version."""
    manifest = _read_manifest(out)
    return manifest is not None and str(manifest.get("format")).startswith(FORMAT.partition("/")[0])


def _read_manifest(out: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _states(paths: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Size and time of change of files."""
    return {name: (path.stat().st_size, path.stat().st_mtime_ns) for name, path in paths.items()}


def _digests(paths: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of files."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(files.file_digest, paths.values()), strict=True))


def _manifest(config: PrepareConfig, made: Parts, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What readers of the store know about it."""
    roads, tokens, flow = (dict(made[name].facts) for name in ("roads", "tokens", "flow"))
    splits = {split: dict(made[split].facts) for split in SPLITS}
    leaks = dict(made["leaks"].facts)
    findings = [sentence for facts in (roads, *splits.values(), leaks) for sentence in facts.pop("findings")]
    classes, duplicates, outside = (
        roads.pop("highway_classes"),
        roads.pop("duplicate_pairs"),
        tokens.pop("roads_outside_grid"),
    )
    dropped = {split: facts.pop("dropped") for split, facts in splits.items()}
    return {
        "format": FORMAT,
        "fingerprint": parts.content_digest(made),
        "software": shared.__version__,
        "settings": config.model_dump(mode="json", exclude={"workers"}),
        **tokens,
        "statistics": {
            **flow,
            **roads,
            **made["zones"].facts,
            "road_types": len(classes),
            "longest_trip": max(facts["longest_trip"] for facts in splits.values()),
            "roads_outside_grid": outside,
        },
        "splits": splits,
        "dropped": {**dropped, "roadmap.rel": {"duplicate_pairs": duplicates}},
        "highway_classes": classes,
        "findings": findings,
        **made["measures"].facts,
        "inputs": dict(inputs),
    }
