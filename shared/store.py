"""The store: what `prepare` writes and every other job reads.

    STORE/
      store.json            manifest: settings, tokeniser, statistics, sizes, fingerprint
      network/<name>.npy    road network and its derived features
      train|val|test/       roads, seconds, offsets of the trips, flat
        roads.npy             int32 [L]    road ids, trips back to back
        times.npy             int64 [L]    entry time of each road, seconds since 1970 on the file's clock
        offsets.npy           int64 [n+1]  start of each trip
        source_rows.npy       int64 [n]    row of the trip in the CSV file, 0-based after the header

Arrays are plain `.npy` files: held in memory if they fit, memory-mapped otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from shared import ragged
from shared.arrays import Int32, Int64
from shared.errors import CompatibilityError, DataError, FileFormatError
from shared.vocab import Tokeniser

log = logging.getLogger(__name__)

FORMAT = "hoser-store/1"
SPLITS = ("train", "val", "test")
PREPARE = "run `prepare` again"
"""What mends a damaged store."""
RAM_SHARE = 0.6
"""Share of the free memory that a split may take before it is memory-mapped."""

SplitName = Literal["train", "val", "test"]
Cache = Literal["auto", "ram", "mmap"]


@dataclasses.dataclass(frozen=True, eq=False)
class Trips:
    """The trips of a split, flat. L roads in n trips.

    Attributes:
        roads: int32 [L] road ids.
        times: int64 [L] entry times, seconds.
        offsets: int64 [n + 1].
        source_rows: int64 [n] row in the CSV file.
    """

    roads: Int32
    times: Int64
    offsets: Int64
    source_rows: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64:
        """Roads per trip, int64 [n]."""
        return np.diff(self.offsets)

    def lengths_of(self, trips: Int64) -> Int64:
        """Roads of each of the given trips: int64, as `trips`."""
        return self.offsets[trips + 1] - self.offsets[trips]

    def take(self, trips: Int64) -> Trips:
        """The given trips, in the given order, in memory."""
        lengths = self.lengths_of(trips)
        index = ragged.slices(self.offsets[trips], lengths)
        return Trips(self.roads[index], self.times[index], ragged.offsets(lengths), self.source_rows[trips])


class Store:
    """A directory written by `prepare`, opened for reading.

    Attributes:
        path: the directory.
        manifest: content of `store.json`.
        tokeniser: grid and vocabulary of `road_token`.
    """

    def __init__(self, path: Path) -> None:
        """Opens the manifest.

        Raises:
            FileFormatError: `path` is not a store, is one of another version, or is damaged.
        """
        self.path = path
        self.manifest = _read_manifest(path)
        occupied_path = path / "network" / "occupied_cells.npy"
        occupied = _load(occupied_path, mmap=False) if occupied_path.exists() else None
        try:
            self.tokeniser = Tokeniser.from_dict(self.manifest, occupied)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}; run `prepare` again") from None

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """As `Store(path)`, of a path that may be text."""
        return cls(Path(path))

    @property
    def fingerprint(self) -> str:
        """Digest of the roads, zones and trips; raises `FileFormatError` without one.

        Stores that differ in their grids alone have the same, and their students, their trips and evaluations fit
        each other. The grid has its own: `tokeniser.fingerprint`.
        """
        return str(self._known("fingerprint"))

    @property
    def time_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of log1p seconds in the training split; raises `FileFormatError` without."""
        statistics = self._known("statistics")
        try:
            mu, sigma = float(statistics["mu"]), float(statistics["sigma"])
        except (KeyError, TypeError, ValueError):
            mu = sigma = math.nan
        if not (math.isfinite(mu) and math.isfinite(sigma)):
            raise FileFormatError(f"{self.path / 'store.json'} lacks statistics.mu and .sigma; run `prepare` again")
        return mu, sigma

    def _known(self, name: str) -> Any:
        if name not in self.manifest:
            raise FileFormatError(f"{self.path / 'store.json'} lacks {name}; run `prepare` again")
        return self.manifest[name]

    @functools.cached_property
    def road_token(self) -> Int32:
        """Token of each road, int32 [N]."""
        return self.network("road_token")

    def network(self, name: str) -> npt.NDArray[Any]:
        """An array of the road network, in memory."""
        return _load(self.path / "network" / f"{name}.npy", mmap=False)

    def trips(self, split: SplitName, cache: Cache = "auto") -> Trips:
        """The trips of a split.

        Args:
            split: train, val or test.
            cache: `ram`, `mmap`, or `auto`: in memory if it takes at most `RAM_SHARE`
                of what is free. The choice is logged.

        Raises:
            DataError: the store has no such split.
            FileFormatError: a file of the split is missing or damaged.
        """
        folder = self.path / split
        if not folder.is_dir():
            raise DataError(f"{self.path} has no {split} split; it holds {', '.join(map(str, self._known('splits')))}")
        return read_trips(folder, cache)

    def check_vocabulary(self, tokeniser: Tokeniser, teacher: str) -> None:
        """Refuses a teacher of another grid or vocabulary.

        Args:
            tokeniser: the teacher's.
            teacher: where it is, for people: "at HOST:PORT".

        Raises:
            CompatibilityError: naming every value that differs, and how to mend it.
        """
        if tokeniser.fingerprint != self.tokeniser.fingerprint:
            differences = "; ".join(self.tokeniser.differences(tokeniser))
            raise CompatibilityError(
                f"the store {self.path} and the teacher {teacher} do not share grid and vocabulary "
                f"(store != teacher): {differences}. Prepare the store with grid.teacher=TEACHER_FILE, "
                "or pretrain a teacher on this store"
            )


def read_trips(folder: Path, cache: Cache = "auto", mend: str = PREPARE) -> Trips:
    """The trips in a directory that is laid out as a split.

    Args:
        folder: with an array a file.
        cache: see `Store.trips`.
        mend: what to do if they cannot be read.

    Raises:
        FileFormatError: a file is missing or damaged.
    """
    paths = {field.name: folder / f"{field.name}.npy" for field in dataclasses.fields(Trips)}
    size = sum(path.stat().st_size for path in paths.values() if path.is_file())
    free = psutil.virtual_memory().available
    mmap = cache == "mmap" or (cache == "auto" and size > RAM_SHARE * free)
    log.log(
        logging.INFO if mmap and cache == "auto" else logging.DEBUG,  # slower than people expect: worth a line
        "%s: %.1f MiB, %.0f MiB of memory free: %s (cache=%s)",
        folder.name, size / 2**20, free / 2**20, "memory-mapped" if mmap else "held in memory", cache,
    )  # fmt: skip
    return _checked(folder, Trips(**{name: _load(path, mmap, mend) for name, path in paths.items()}), mend)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "store.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(
            f"{path} is not a store (no store.json); make one with `student-trainer prepare`"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{path / 'store.json'} cannot be read: {error}; run `prepare` again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileFormatError(f"{path} is a store of another version (expected {FORMAT}); run `prepare` again")
    return manifest


def _checked(folder: Path, trips: Trips, mend: str) -> Trips:
    """Trips whose arrays fit together."""
    arrays = vars(trips)
    flat = all(array.ndim == 1 and np.issubdtype(array.dtype, np.integer) for array in arrays.values())
    offsets = trips.offsets
    if not (
        flat
        and trips.roads.dtype == np.int32
        and len(offsets) == len(trips.source_rows) + 1
        and offsets[0] == 0
        and offsets[-1] == len(trips.roads) == len(trips.times)
        and bool(np.all(offsets[1:] >= offsets[:-1]))
    ):
        raise FileFormatError(f"{folder} is damaged: its arrays do not fit together; {mend}")
    return trips


def _load(path: Path, mmap: bool, mend: str = PREPARE) -> npt.NDArray[Any]:
    try:
        if mmap:
            return np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as stream:
            array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # an untrusted header can make numpy's parser fail in any way
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{path} is missing or damaged ({reason}); {mend}") from None
    return array
