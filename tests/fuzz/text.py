"""Text: HOSER's CSV files and the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from support.tiny_city import TINY

from fuzz.target import Target, as_file
from shared import config
from shared.errors import DataError
from student_trainer.prepare import network, raw, trip_text
from student_trainer.prepare.raw import TripFile
from student_trainer.train.config import TrainConfig
from teacher_server.serve.config import ServeConfig

ROADS = 5
COLUMNS = ["traj_id", "rid_list", "time_list"]
HEADER = b"traj_id,rid_list,time_list\n"


def read_roads(data: bytes) -> None:
    """roadmap.geo, and what is computed of its lines."""
    with as_file(data, "roadmap.geo") as path:
        roads = raw.read_roads(path)
        assert len(roads.highway) == len(roads)
        assert np.isfinite(network.line_centroids(roads)).all()


def read_pairs(data: bytes) -> None:
    """roadmap.rel."""
    with as_file(data, "roadmap.rel") as path:
        origin, destination = raw.read_successor_pairs(path, ROADS)
        assert origin.shape == destination.shape


def read_trips(data: bytes) -> None:
    """A split, in blocks, as `prepare` does."""
    with as_file(data, "train.csv") as path:
        file = raw.open_trips(path, ROADS)
        for block in raw.read_trip_blocks(file):
            raw.parse_trips(file, block)


def read_plain_trips(data: bytes) -> None:
    """The compiled reader: what it reads, the general one reads alike, and refuses nothing of it."""
    text = data if data.endswith(b"\n") else data + b"\n"
    plain = trip_text.read_block(text, len(COLUMNS), 1, 2, ROADS)
    if plain is None:
        return
    roads, times, lengths = plain
    try:
        trips = raw.parse_any_trips(TripFile(Path("train.csv"), HEADER, COLUMNS, ROADS), text)
    except DataError as error:
        raise AssertionError("the general reader refuses what the compiled one has read") from error
    assert np.array_equal(np.diff(trips.offsets), lengths)
    assert np.array_equal(trips.roads, roads)
    assert np.array_equal(trips.times, times)


def read_yaml(data: bytes) -> None:
    """A configuration file, for two jobs."""
    with as_file(data, "config.yaml") as path:
        config.load(TrainConfig, "train", [path])
        config.load(ServeConfig, "serve", [path])


def read_override(data: bytes) -> None:
    """`key=value` of a command line."""
    config.load(ServeConfig, "serve", overrides=["teacher=t", data.decode("utf-8", "replace")])


def _yaml() -> Sequence[bytes]:
    return [
        b"train: {data: s, teacher: none, out: o, distill: {window: 4}}\nserve: {teacher: t, cache: {mib: 1}}\n",
        b"a: &a {b: 1}\ntrain:\n  <<: *a\n  data: [*a, *a]\n",
        b"train: {data: !!int x, out: !!binary aGk=, optim: {epochs: 1e3}}",
        b"train: !!python/object/apply:os.system [true]",
    ]


def _splits() -> Sequence[bytes]:
    return [TINY[f"{split}.csv"].encode() for split in ("train", "val", "test")]


TARGETS = (
    Target("roads", read_roads, lambda: [TINY["roadmap.geo"].encode()]),
    Target("pairs", read_pairs, lambda: [TINY["roadmap.rel"].encode()]),
    Target("trips", read_trips, _splits),
    Target("plain-trips", read_plain_trips, lambda: [split.partition(b"\n")[2] for split in _splits()]),
    Target("yaml", read_yaml, _yaml),
    Target("override", read_override, lambda: [b"batching.batch_ms=20", b"listen=[1, {a: 2}]", b"a.b=&x [*x]"]),
)
