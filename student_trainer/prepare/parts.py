"""The parts of a store: each is made anew only if what decides its content has changed.

    roads      geometry, attributes, successors, road graph
    tokens     the cell of each road
    train, val, test
    zones      the partition of the roads
    flow       transitions between zones in train, and the statistics of its travel times
    measures   floors and collisions, facts only
    leaks      findings about trips that are in train and in another split

Beside the arrays lies `parts.json`: of each part its fingerprint, its files and its facts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import files, provenance
from shared.store import SPLITS
from student_trainer.prepare import collisions, raw, zones
from student_trainer.prepare.config import PrepareConfig

log = logging.getLogger(__name__)

PARTS_FILE = "parts.json"
SAID = ("findings", "placeholders", "cell_size_reason")
"""Facts that say something about the content and are no part of it."""
NO_CONTENT = ("tokens", "measures", "leaks")
"""Parts that are no part of the content: a teacher's vocabulary has a fingerprint of its own, for a student knows no
cells; the others only say something."""


Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a store.

    Attributes:
        fingerprint: digest of all that decides its content.
        files: SHA-256 and size of its arrays, by path within the store.
        facts: what else is known about it, as JSON.
    """

    fingerprint: str
    files: Mapping[str, tuple[str, int]]
    facts: Facts


Parts = dict[str, Part]


def input_paths(config: PrepareConfig) -> dict[str, Path]:
    """Every file that decides what the store holds, by name; those that exist."""
    names = [*raw.REQUIRED, zones.PARTITION_FILE]
    paths = {name: config.raw / name for name in names}
    if config.grid.teacher is not None:
        paths["grid.teacher"] = config.grid.teacher
    return {name: path for name, path in paths.items() if path.is_file()}


def fingerprints(config: PrepareConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """Of each part, the digest of what decides its content: inputs, settings, parts that it is made from, and code.

    Places decide nothing, so equal cities have equal stores.

    Args:
        config: the settings.
        inputs: SHA-256 of the files of `input_paths`.
    """
    code = code_digest()

    def of(*deciding: Any) -> str:
        return files.digest(json.dumps([code, *deciding], sort_keys=True))

    network = [inputs.get("roadmap.geo"), inputs.get("roadmap.rel")]
    grid = config.grid.model_dump(mode="json", exclude={"teacher"})
    cut: Any = inputs.get(zones.PARTITION_FILE)
    if cut is None:
        cut = [config.zones.model_dump(mode="json"), importlib.metadata.version("kahip")]
    result = {
        "roads": of("roads", network),
        "tokens": of("tokens", network, grid, inputs.get("grid.teacher")),
        "zones": of("zones", network, cut),
    }
    for split in SPLITS:
        result[split] = of(split, network, inputs.get(f"{split}.csv"), config.strict)
    result["flow"] = of("flow", result["zones"], result["train"])
    result["leaks"] = of("leaks", *(result[split] for split in SPLITS))
    result["measures"] = of("measures", result["tokens"], result["train"], result["val"], collisions.CELL_SIZES)
    return result


def code_digest() -> str:
    """Digest of the source that decides what a store holds."""
    return provenance.source_digest("student_trainer.prepare.run")


def read(store: Path) -> Parts:
    """The parts of a store whose files are as they were written; none where it has no such list."""
    path = store / PARTS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            name: Part(
                part["fingerprint"], {file: (sha, size) for file, (sha, size) in part["files"].items()}, part["facts"]
            )
            for name, part in document.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be used (%s); all is made again", path, " ".join(str(error).split()))
        return {}
    whole = {name for name, part in parts.items() if _is_whole(store, part)}
    for name in sorted(parts.keys() - whole):
        log.warning("files of %s in %s are damaged or gone; it is made again", name, store)
    return {name: parts[name] for name in parts if name in whole}


def write(store: Path, parts: Parts) -> None:
    """Writes the list of parts."""
    files.write_json(store / PARTS_FILE, {name: dataclasses.asdict(parts[name]) for name in sorted(parts)})


def made(store: Path, fingerprint: str, names: Sequence[str], facts: Facts) -> Part:
    """A part whose files have just been written."""
    found = {name: (files.file_digest(store / name), (store / name).stat().st_size) for name in names}
    return Part(fingerprint, found, facts)


def take_over(part: Part, old: Path, new: Path) -> None:
    """Puts a part's files into another store, as links where the file system has them; both only ever read them."""
    for name in part.files:
        (new / name).parent.mkdir(exist_ok=True)
        try:
            os.link(old / name, new / name)
        except OSError:
            shutil.copyfile(old / name, new / name)


def content_digest(parts: Parts) -> str:
    """Digest of the roads, zones and trips of a store; however they came about, and whatever its grid is."""
    content = [[parts[name].files, _content(parts[name].facts)] for name in sorted(parts) if name not in NO_CONTENT]
    return files.digest(json.dumps(content, sort_keys=True))


def _content(facts: Facts) -> Facts:
    return {name: fact for name, fact in facts.items() if name not in SAID}


def _is_whole(store: Path, part: Part) -> bool:
    with contextlib.suppress(OSError):
        return all(
            (store / name).stat().st_size == size and files.file_digest(store / name) == sha
            for name, (sha, size) in part.files.items()
        )
    return False
