"""Raw directory -> the store's arrays and facts, all in memory; `run` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tqdm

from shared.grid import Centroid
from shared.store import SPLITS, Trips
from shared.vocab import Tokeniser
from student_trainer.prepare import collisions, features, floors, network, raw, tokens, zones
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.network import Successors
from student_trainer.prepare.trips import steps_of, usable

MEASURED_SPLIT = "val"

Arrays = dict[str, npt.NDArray[Any]]
Done = Callable[[str], object]


@dataclasses.dataclass(frozen=True, eq=False)
class City:
    """What the raw directory says.

    Attributes:
        roads: `roadmap.geo`.
        successors: `roadmap.rel`, without its repeated pairs.
        duplicate_pairs: how many those were.
        trips: the usable trips of each split.
        dropped: of each split, how many trips were dropped for which reason.
    """

    roads: raw.Roads
    successors: Successors
    duplicate_pairs: int
    trips: dict[str, Trips]
    dropped: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """The store in memory: arrays by relative path, and the manifest's facts about them."""

    arrays: Arrays
    facts: dict[str, Any]


def build(config: PrepareConfig) -> Content:
    """Reads, derives and measures everything; the order is that of the data flow.

    Raises:
        DataError: a raw file is missing or malformed.
        CompatibilityError: the teacher's grid does not fit the roads.
    """
    stages = [*SPLITS, "network", "road graph", "zones", "tokens", "measures"]
    with tqdm.tqdm(total=len(stages), desc="prepare", unit="stage", disable=None, leave=False) as progress:

        def done(stage: str) -> None:
            progress.set_postfix_str(stage)
            progress.update()

        city = _read(config, done)
        geometry = _geometry(city.roads)
        classes, attributes = _attributes(city.roads, geometry["line_centroid"])
        graph = _graph(city)
        done("road graph")
        zone_arrays = _zones(config, city)
        done("zones")
        tokeniser, token_arrays, outside = _tokens(config, city.roads, geometry)
        done("tokens")
        arrays = {**geometry, **attributes, **graph, **zone_arrays, **token_arrays}
        facts = {
            **tokeniser.to_dict(),
            "statistics": _statistics(city, arrays, len(classes), outside),
            "splits": {split: _split_facts(trips) for split, trips in city.trips.items()},
            "dropped": {**city.dropped, "roadmap.rel": {"duplicate_pairs": city.duplicate_pairs}},
            "highway_classes": classes,
            **_measures(config, city, geometry, tokeniser),
        }
        done("measures")
    return Content(_by_path(arrays, city.trips), facts)


def _read(config: PrepareConfig, done: Done) -> City:
    roads = raw.read_roads(config.raw / "roadmap.geo")
    pairs = raw.read_successor_pairs(config.raw / "roadmap.rel", len(roads))
    successors = Successors.from_pairs(*pairs, len(roads))
    done("network")
    trips, dropped = {}, {}
    for split in SPLITS:
        split_raw = raw.read_trips(config.raw / f"{split}.csv", len(roads))
        trips[split], dropped[split] = usable(split_raw, successors, config.strict)
        done(split)
    return City(roads, successors, len(pairs[0]) - len(successors.roads), trips, dropped)


def _geometry(roads: raw.Roads) -> Arrays:
    return {
        "line_centroid": network.line_centroids(roads),
        "vertex_mean": network.vertex_means(roads),
        "end_vertex": network.end_vertices(roads),
        "length": roads.length,
        "vertex_offsets": roads.vertex_offsets,
        "vertices": roads.vertices,
    }


def _attributes(roads: raw.Roads, centroid: npt.NDArray[np.float64]) -> tuple[list[str], Arrays]:
    classes, road_type = features.road_types(roads.highway)
    arrays: Arrays = {
        "attr_len": features.z_scores(np.log1p(roads.length), "length"),
        "attr_type": road_type,
        "attr_lon": features.z_scores(centroid[:, 1], "longitude"),
        "attr_lat": features.z_scores(centroid[:, 0], "latitude"),
    }
    return classes, arrays


def _graph(city: City) -> Arrays:
    edges = network.road_graph(city.roads)
    return {
        "successor_offsets": city.successors.offsets,
        "successors": city.successors.roads,
        "road_edge_index": edges,
        "intersection_attr": network.intersection_attributes(city.roads, city.successors, edges),
    }


def _zones(config: PrepareConfig, city: City) -> Arrays:
    zone = zones.road_zones(config.raw, city.successors, config.zones)
    counts = zones.transitions(city.trips["train"], zone)
    zones.warn_if_matrix_differs(config.raw, counts)
    edges, weight = zones.zone_graph(counts)
    return {"road_zone": zone, "zone_transitions": counts, "zone_edge_index": edges, "zone_edge_weight": weight}


def _tokens(config: PrepareConfig, roads: raw.Roads, geometry: Arrays) -> tuple[Tokeniser, Arrays, int]:
    points = _points(geometry)
    tokeniser = tokens.make_tokeniser(config.grid, tokens.extent(roads.vertices), points)
    grid = tokens.grid_of(tokeniser)
    road_token, outside = tokens.road_tokens(tokeniser, points[grid.centroid], config.grid.max_outside)
    arrays: Arrays = {"road_token": road_token}
    if tokeniser.vocabulary.occupied is not None:
        arrays["occupied_cells"] = tokeniser.vocabulary.occupied
    return tokeniser, arrays, outside


def _points(geometry: Arrays) -> dict[Centroid, npt.NDArray[np.float64]]:
    return {"vertex_mean": geometry["vertex_mean"], "line": geometry["line_centroid"]}


def _measures(config: PrepareConfig, city: City, geometry: Arrays, tokeniser: Tokeniser) -> dict[str, Any]:
    """Floors, and the collision table of the usual cell sizes and the chosen grid, coarse to fine."""
    train, steps = (steps_of(city.trips[split], city.successors) for split in ("train", MEASURED_SPLIT))
    accuracies = floors.measure(train, steps, city.successors, geometry["line_centroid"])
    chosen = tokens.grid_of(tokeniser)
    lat, lng = _points(geometry)[chosen.centroid].T
    bounds = config.grid.bounds or tokens.extent(city.roads.vertices)
    grids = [
        tokens.make_grid(bounds, size, chosen.centroid) for size in collisions.CELL_SIZES if size != chosen.cell_lat
    ]
    table = [
        collisions.measure(grid.cell(lat, lng), city.successors, steps, grid.cell_lat, chosen=grid is chosen)
        for grid in sorted([*grids, chosen], key=lambda grid: -grid.cell_lat)
    ]
    return {
        "collisions": [dataclasses.asdict(line) for line in table],
        "recommended_cell_size": collisions.recommend(table, accuracies),
        "floors": accuracies,
    }


def _statistics(city: City, arrays: Arrays, num_types: int, outside: int) -> dict[str, Any]:
    mu, sigma = features.travel_time_statistics(city.trips["train"])
    return {
        "mu": mu,
        "sigma": sigma,
        "roads": len(city.roads),
        "successor_pairs": len(city.successors.roads),
        "max_out_degree": int(city.successors.degree.max()),
        "road_edges": arrays["road_edge_index"].shape[1],
        "road_types": num_types,
        "zones": len(arrays["zone_transitions"]),
        "zone_edges": arrays["zone_edge_index"].shape[1],
        "longest_trip": max(int(trips.lengths.max()) for trips in city.trips.values()),
        "roads_outside_grid": outside,
    }


def _split_facts(trips: Trips) -> dict[str, int]:
    roads = len(trips.roads)
    return {
        "trips": len(trips),
        "roads": roads,
        "steps": roads - len(trips),
        "longest_trip": int(trips.lengths.max()),
    }


def _by_path(network_arrays: Arrays, trips: dict[str, Trips]) -> Arrays:
    arrays = {f"network/{name}.npy": array for name, array in network_arrays.items()}
    for split, flat in trips.items():
        for field in dataclasses.fields(flat):
            arrays[f"{split}/{field.name}.npy"] = getattr(flat, field.name)
    return arrays
