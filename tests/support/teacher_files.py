"""What `export` and `pretrain` read, made small: upstream checkpoints, and stores of a few trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import ragged
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary
from teacher_server.lmtad.model import LMTAD, Architecture

GRID = Grid.from_bounds((0.0, 0.0, 0.35, 0.45), 0.1, 0.1)
ROAD_CELL = np.array([2, 3, 3, 5, 8, 11, 12, 19])
"""Eight roads in seven of twenty cells."""
SUCCESSORS = np.array([[road + 1, road + 2] for road in range(8)], np.int32) % 8
"""Two of each road; those of road 0 are in one cell."""


def write_checkpoint(path: Path, vocab_size: int, **extra: Any) -> Path:
    """A weights-only export with a small model for `vocab_size` tokens."""
    architecture = Architecture(n_layer=1, n_head=2, n_embd=4, block_size=6, vocab_size=vocab_size, bias=False)
    torch.manual_seed(0)
    config = {**architecture.to_dict(), **extra.pop("model_config", {})}
    torch.save({"state_dict": LMTAD(architecture).state_dict(), "model_config": config, **extra}, path)
    return path


def write_store(path: Path, trips: dict[str, list[list[int]]]) -> Path:
    """A store as `prepare` lays it out, reduced to what pretraining reads."""
    tokeniser = Tokeniser(Vocabulary.of_occupied(ROAD_CELL), GRID)
    (path / "network").mkdir(parents=True)
    assert tokeniser.vocabulary.occupied is not None
    np.save(path / "network" / "occupied_cells.npy", tokeniser.vocabulary.occupied)
    np.save(path / "network" / "road_token.npy", tokeniser.vocabulary.token(ROAD_CELL))
    np.save(path / "network" / "successor_offsets.npy", np.arange(9) * 2)
    np.save(path / "network" / "successors.npy", SUCCESSORS.ravel())
    for split, rows in trips.items():
        (path / split).mkdir()
        lengths = np.array([len(row) for row in rows], np.int64)
        np.save(path / split / "roads.npy", np.array([road for row in rows for road in row], np.int32))
        np.save(path / split / "times.npy", np.zeros(lengths.sum(), np.int64))
        np.save(path / split / "offsets.npy", ragged.offsets(lengths))
        np.save(path / split / "source_rows.npy", np.arange(len(rows), dtype=np.int64))
    floors = {"nearest_to_destination": 0.25, "first_order_markov": 0.5, "second_order_markov": 0.75}
    manifest = {"format": "hoser-store/1", "fingerprint": "f00d", "splits": list(trips), "floors": floors}
    (path / "store.json").write_text(json.dumps(manifest | tokeniser.to_dict()))
    return path


def circular_trips(count: int, seed: int) -> list[list[int]]:
    """Trips around a circle of eight roads: the next road is certain, the end is not."""
    random = np.random.default_rng(seed)
    return [((random.integers(8) + np.arange(random.integers(2, 20))) % 8).tolist() for _ in range(count)]
