"""Trips that `sample` drew from a teacher: a split of their own, beside the store that they belong to.

SAMPLED/
  sampled.json      format, store, teacher, settings, counts, rates, digests of the arrays
  roads.npy, times.npy, offsets.npy, source_rows.npy   as in a split of the store; a source row is a walker's number
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import files, ragged
from shared.errors import CompatibilityError, FileFormatError
from shared.store import Store, Trips, read_trips

FORMAT = "hoser-sampled/1"
DOCUMENT = "sampled.json"
ARRAYS = tuple(field.name for field in dataclasses.fields(Trips))
MEND = "make it again with `student-trainer sample`"


def write_sampled(folder: Path, trips: Trips, store: Store, about: dict[str, Any]) -> dict[str, Any]:
    """Writes trips and what there is to say about them into a directory; returns the document.

    Args:
        folder: exists.
        trips: on the store's network.
        store: whose they are.
        about: further content of `sampled.json`.
    """
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(trips, name))
    digests = {f"{name}.npy": files.file_digest(folder / f"{name}.npy") for name in ARRAYS}
    document = {"format": FORMAT, "store": store.fingerprint, **about, "files": digests}
    files.write_json(folder / DOCUMENT, document)
    return document


def load_sampled(path: Path, store: Store) -> Trips:
    """The trips in a directory that `sample` wrote, in memory.

    Raises:
        FileFormatError: it is no such directory, or is damaged.
        CompatibilityError: its trips are of another store.
    """
    document = read_document(path)
    if document["store"] != store.fingerprint:
        raise CompatibilityError(
            f"{path} was sampled on another store than {store.path} (or the store was prepared anew); sample again"
        )
    for name, digest in _digests(path, document).items():
        try:
            found = files.file_digest(path / name)
        except OSError as error:
            raise FileFormatError(f"{path / name} cannot be read: {error.strerror}; {MEND}") from None
        if found != digest:
            raise FileFormatError(f"{path / name} is not as `sample` wrote it (damaged, or edited); {MEND}")
    trips = read_trips(path, "ram", MEND)
    _check(path, trips, store)
    return trips


def read_document(path: Path) -> dict[str, Any]:
    """What a directory says of its trips.

    Raises:
        FileFormatError: it is not one that `sample` wrote.
    """
    try:
        document = json.loads((path / DOCUMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not path.exists():
            raise FileFormatError(f"{path} does not exist; `student-trainer sample` writes sampled trips") from None
        raise FileFormatError(f"{path} holds no sampled trips (no {DOCUMENT}); {MEND}") from None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path / DOCUMENT} cannot be read: {' '.join(str(error).split())}; {MEND}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FileFormatError(f"{path / DOCUMENT} is of another version (expected {FORMAT}); {MEND}")
    if not isinstance(document.get("store"), str):
        raise FileFormatError(f"{path / DOCUMENT} does not name its store; {MEND}")
    return document


def sampled_digest(document: Mapping[str, Any]) -> str:
    """What tells the trips of a directory, of which this is the document, from those of any other."""
    return files.digest(json.dumps(document["files"], sort_keys=True))


def differences(
    document: Mapping[str, Any], path: Path, revision: str, train_trips: int, sample_seed: int
) -> Iterator[str]:
    """What is told of sampled trips that do not belong to a run with these settings, and a teacher of this revision.

    Args:
        document: what their directory, `path`, says of them.
        revision: empty without a teacher.
        train_trips, sample_seed: of the run.
    """
    teacher, settings = document.get("teacher"), document.get("settings")
    drawn_by = teacher.get("revision") if isinstance(teacher, dict) else None
    if revision and drawn_by not in (None, revision):
        yield f"the trips in {path} were drawn from a teacher with the weights {drawn_by}, this run's has {revision}"
    known = settings if isinstance(settings, dict) else {}
    theirs = known.get("train_trips"), known.get("sample_seed") if known.get("train_trips") else sample_seed
    if theirs[0] is not None and theirs != (train_trips, sample_seed):
        yield (
            f"the trips in {path} were drawn with train_trips={theirs[0]} sample_seed={theirs[1]}, and use what these "
            f"show; this run has batch.train_trips={train_trips} batch.sample_seed={sample_seed}"
        )


def is_sampled(path: Path) -> bool:
    """Whether a directory holds what `sample` writes, of any version."""
    try:
        document = json.loads((path / DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and str(document.get("format")).startswith(FORMAT.partition("/")[0])


def _digests(path: Path, document: dict[str, Any]) -> dict[str, str]:
    digests = document.get("files")
    if not isinstance(digests, dict) or digests.keys() != {f"{name}.npy" for name in ARRAYS}:
        raise FileFormatError(f"{path / DOCUMENT} does not list the digests of its arrays; {MEND}")
    return digests


def _check(path: Path, trips: Trips, store: Store) -> None:
    """Raises `FileFormatError` unless every trip is one that `prepare` would keep."""
    offsets, successors = store.network("successor_offsets"), store.network("successors")
    num_roads = len(offsets) - 1
    if len(trips) == 0 or int(trips.lengths.min()) < 2:
        raise FileFormatError(f"{path} holds no trip, or one of fewer than two roads; {MEND}")
    if int(trips.roads.min()) < 0 or int(trips.roads.max()) >= num_roads:
        raise FileFormatError(f"{path} has a road that {store.path} lacks (0..{num_roads - 1}); {MEND}")
    row = ragged.rows(trips.lengths)
    step = np.flatnonzero(row[:-1] == row[1:])
    edges = np.sort(ragged.rows(np.diff(offsets)) * num_roads + successors)
    taken = trips.roads[step].astype(np.int64) * num_roads + trips.roads[step + 1]
    if not len(edges) or (edges[np.searchsorted(edges, taken).clip(max=len(edges) - 1)] != taken).any():
        raise FileFormatError(f"{path} has a trip that leaves the road network of {store.path}; {MEND}")
    if (trips.times[step + 1] < trips.times[step]).any():
        raise FileFormatError(f"{path} has a trip that goes back in time; {MEND}")
