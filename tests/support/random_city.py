"""A random road network with random walks on it, written as a store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from shared import ragged, store
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import write_sampled

MONDAY_NOON = 1_704_715_200


def random_network(num_roads: int = 30, seed: int = 0, max_degree: int = 5) -> tuple[RoadNetwork, Tokeniser]:
    """Roads at random places; each has 1 to `max_degree` distinct successors; several roads share a cell."""
    rng = np.random.default_rng(seed)
    centre = np.stack([50 + 0.01 * rng.random(num_roads), 8 + 0.01 * rng.random(num_roads)], axis=1)
    degree = rng.integers(1, max_degree + 1, num_roads)
    degree[0] = max_degree
    successors = np.concatenate([rng.permutation(num_roads)[:d] for d in degree])
    grid = Grid.from_bounds((50.0, 8.0, 50.01, 8.01), 0.002, 0.002)
    cells = grid.cell(centre[:, 0], centre[:, 1])
    tokeniser = Tokeniser(Vocabulary.of_occupied(cells), grid)
    edges = np.unique(rng.integers(0, num_roads, (2, 3 * num_roads)), axis=1)
    zones = rng.integers(0, 4, num_roads)
    zones[:4] = np.arange(4)
    zone_edges = np.array([[0, 1, 2, 3, 1], [1, 2, 3, 0, 0]])
    network = RoadNetwork(
        successor_offsets=ragged.offsets(degree),
        successors=successors.astype(np.int32),
        line_centroid=centre,
        end_vertex=centre + 0.0005 * rng.random((num_roads, 2)),
        road_token=tokeniser.vocabulary.token(cells),
        road_zone=zones,
        attr_len=rng.normal(size=num_roads).astype(np.float32),
        attr_type=np.arange(num_roads) % 3,
        attr_lon=rng.normal(size=num_roads).astype(np.float32),
        attr_lat=rng.normal(size=num_roads).astype(np.float32),
        road_edge_index=edges,
        intersection_attr=rng.random((edges.shape[1], 2)).astype(np.float32),
        zone_edge_index=zone_edges,
        zone_edge_weight=rng.random(5).astype(np.float32),
    )
    return network, tokeniser


def random_trips(network: RoadNetwork, count: int, seed: int = 0, longest: int = 12) -> store.Trips:
    """Random walks over successors, 2 to `longest` roads, with whole seconds between entries."""
    rng = np.random.default_rng((seed, 1))
    roads, times, lengths = [], [], rng.integers(2, longest + 1, count)
    for length in lengths:
        road = int(rng.integers(network.num_roads))
        time = MONDAY_NOON + int(rng.integers(0, 14 * 86_400))
        for _ in range(length):
            roads.append(road)
            times.append(time)
            following = network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]
            road = int(following[min(int(rng.integers(3)), len(following) - 1)])
            time += int(rng.integers(1, 200))
    return store.Trips(np.array(roads, np.int32), np.array(times), ragged.offsets(lengths), np.arange(count))


def write_random_store(path: Path, trips: int = 60, seed: int = 0) -> store.Store:
    """Writes a store of a random city: `trips` training trips and a third as many for validation and test."""
    network, tokeniser = random_network(seed=seed)
    (path / "network").mkdir(parents=True)
    for field in dataclasses.fields(network):
        np.save(path / "network" / f"{field.name}.npy", getattr(network, field.name))
    assert tokeniser.vocabulary.occupied is not None
    np.save(path / "network" / "occupied_cells.npy", tokeniser.vocabulary.occupied)
    np.save(path / "network" / "length.npy", np.random.default_rng((seed, 2)).uniform(20, 300, network.num_roads))
    for number, split in enumerate(store.SPLITS):
        content = random_trips(network, trips if split == "train" else trips // 3, seed=10 * seed + number)
        (path / split).mkdir()
        for field in dataclasses.fields(content):
            np.save(path / split / f"{field.name}.npy", getattr(content, field.name))
    manifest = {
        "format": store.FORMAT,
        "fingerprint": f"random city {seed}",
        "splits": {name: {} for name in store.SPLITS},
        "statistics": {"mu": 4.2, "sigma": 0.8},
        **tokeniser.to_dict(),
    }
    (path / "store.json").write_text(json.dumps(manifest))
    return store.Store(path)


def write_random_sample(path: Path, of: store.Store, trips: int = 30, seed: int = 4) -> Path:
    """Writes random trips as ones that were sampled for a store; the path is returned."""
    path.mkdir()
    write_sampled(path, random_trips(RoadNetwork.load(of), trips, seed), of, {})
    return path
