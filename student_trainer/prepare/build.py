"""What each part of a store is made from; `run` decides which are made.

Parts know each other through the store's files alone, so it does not matter whether one was made just now or taken over
from an older store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import progress
from shared.arrays import Float64, Int64
from shared.errors import ConfigError
from shared.grid import Centroid
from shared.store import SPLITS
from shared.vocab import Tokeniser
from student_trainer.prepare import collisions, counts, features, floors, network, parts, raw, splits, tokens, zones
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.counts import Counts
from student_trainer.prepare.leaks import findings_of_store
from student_trainer.prepare.network import Successors
from student_trainer.prepare.partition import Partitioning, partition
from student_trainer.prepare.parts import Facts, Parts
from student_trainer.prepare.plausible import findings, remedy_for_far_roads
from student_trainer.prepare.words import counted
from student_trainer.prepare.workers import Workers

MEASURED_SPLIT = "val"
ORDER = ("roads", "tokens", *SPLITS, "leaks", "measures", "zones", "flow")
"""Parts in the order in which they are made: what others are made from comes first, and the zones, which another
process cuts meanwhile, are waited for as late as possible."""

Arrays = dict[str, npt.NDArray[Any]]

log = logging.getLogger(__name__)


class Builder:
    """Makes the missing parts of a store.

    Attributes:
        parts: those that are there.
        seconds: what each part took that was made here, by name.
    """

    def __init__(self, config: PrepareConfig, folder: Path, there: Parts, fingerprints: Mapping[str, str]) -> None:
        """A builder for the store in `folder`, which holds the files of the parts that are `there`."""
        self.parts, self.seconds = dict(there), dict[str, float]()
        self._config, self._folder, self._fingerprints = config, folder, fingerprints
        self._found: dict[str, Counts] = {}
        self._missing = [name for name in ORDER if name not in there]

    def build(self) -> None:
        """Makes what is missing.

        Raises:
            DataError: a raw file is missing or malformed.
            CompatibilityError: the teacher's grid does not fit the roads.
        """
        make: dict[str, Callable[[], Facts]] = {
            "roads": self._make_roads,
            "tokens": self._make_tokens,
            "zones": self._make_zones,
            "flow": self._make_flow,
            "measures": self._make_measures,
            "leaks": self._make_leaks,
            **{split: functools.partial(self._make_split, split) for split in SPLITS},
        }
        with contextlib.ExitStack() as self._running:
            self._workers = self._running.enter_context(Workers(self._config.workers))
            self._progress = self._running.enter_context(
                progress.bar(
                    total=self._work(), desc="prepare", unit="B", unit_scale=True, unit_divisor=1024, leave=False
                )
            )  # fmt: skip
            for name in self._missing:
                self._make(name, make[name])

    def _make(self, name: str, make: Callable[[], Facts]) -> None:
        self._progress.set_postfix_str(name)
        start, before = time.perf_counter(), self._files()
        facts = make()
        written = sorted(self._files() - before)
        self.parts[name] = parts.made(self._folder, self._fingerprints[name], written, facts)
        self.seconds[name] = time.perf_counter() - start
        log.info("%s: %.2f s", name, self.seconds[name])

    def _files(self) -> set[str]:
        return {path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.npy")}

    def _work(self) -> int:
        """What the progress bar counts: bytes of the raw files that are read, and of those whose trips are counted."""
        names = {"roads": ("roadmap.geo", "roadmap.rel"), **{split: (f"{split}.csv",) for split in SPLITS}}
        read = [name for part in self._missing for name in names.get(part, ())]
        return sum(map(self._size, read)) + sum(self._size(f"{split}.csv") for split in self._counted())

    def _size(self, name: str) -> int:
        path = self._config.raw / name
        return path.stat().st_size if path.is_file() else 0

    def _counted(self) -> Sequence[str]:
        if "measures" in self._missing:
            return ("train", MEASURED_SPLIT)
        return ("train",) if "flow" in self._missing else ()

    def _make_roads(self) -> Facts:
        config = self._config
        roads = raw.read_roads(config.raw / "roadmap.geo")
        pairs = raw.read_successor_pairs(config.raw / "roadmap.rel", len(roads))
        successors = Successors.from_pairs(*pairs, len(roads))
        geometry = _geometry(roads)
        classes, attributes = _attributes(roads, geometry["line_centroid"])
        graph = _graph(roads, successors)
        self._save({**geometry, **attributes, **graph})
        self._progress.update(self._size("roadmap.geo") + self._size("roadmap.rel"))
        return {
            "roads": len(roads),
            "successor_pairs": len(successors.roads),
            "duplicate_pairs": len(pairs[0]) - len(successors.roads),
            "max_out_degree": int(successors.degree.max()),
            "road_edges": graph["road_edge_index"].shape[1],
            "highway_classes": classes,
            "findings": [*roads.findings, *raw.cut_findings(config.raw / "roadmap.rel"), *findings(roads, *pairs)],
        }

    def _make_tokens(self) -> Facts:
        self._start_partition()
        grid = self._config.grid
        try:
            tokeniser = tokens.make_tokeniser(grid, self._extent(), self._points())
        except ConfigError as error:
            far = "" if grid.bounds else remedy_for_far_roads(self._load("vertices"), self._load("vertex_offsets"))
            raise ConfigError(f"{error}{far}") from None
        points = self._points()[tokens.grid_of(tokeniser).centroid]
        road_token, outside = tokens.road_tokens(tokeniser, points, grid.max_outside)
        arrays: Arrays = {"road_token": road_token}
        if tokeniser.vocabulary.occupied is not None:
            arrays["occupied_cells"] = tokeniser.vocabulary.occupied
        self._save(arrays)
        return {**tokeniser.to_dict(), "roads_outside_grid": outside}

    def _make_split(self, split: str) -> Facts:
        self._start_partition()
        file = raw.open_trips(self._config.raw / f"{split}.csv", len(self._successors.degree))
        self._progress.update(len(file.header))
        advance = self._progress.update
        return splits.write(file, self._folder / split, self._successors, self._config.strict, self._workers, advance)

    def _make_zones(self) -> Facts:
        self._start_partition()
        zone = self._partition()
        self._save({"road_zone": zone})
        return {"zones": int(zone.max()) + 1}

    def _make_flow(self) -> Facts:
        train = self._counts("train")
        flow = zones.transitions(train, self._load("road_zone"), self._successors)
        zones.warn_if_matrix_differs(self._config.raw, flow)
        edges, weight = zones.zone_graph(flow)
        self._save({"zone_transitions": flow, "zone_edge_index": edges, "zone_edge_weight": weight})
        mu, sigma = features.travel_time_statistics(train)
        return {"mu": mu, "sigma": sigma, "zone_edges": edges.shape[1]}

    def _make_measures(self) -> Facts:
        """Floors, and the collision table of the usual cell sizes and the chosen grid, coarse to fine."""
        successors, measured = self._successors, self._counts(MEASURED_SPLIT)
        nearest = floors.count_nearest(
            splits.read(self._folder / MEASURED_SPLIT), successors, self._load("line_centroid"), self._workers
        )
        accuracies = floors.measure(self._counts("train"), measured, nearest, successors)
        chosen = tokens.grid_of(self._tokeniser())
        lat, lng = self._points()[chosen.centroid].T
        bounds = self._config.grid.bounds or self._extent()
        grids = [
            tokens.make_grid(bounds, size, chosen.centroid)
            for size in collisions.CELL_SIZES
            if size != chosen.cell_lat and tokens.fits(bounds, size)
        ]
        table = [
            collisions.measure(grid.cell(lat, lng), successors, measured, grid.cell_lat, chosen=grid is chosen)
            for grid in sorted([*grids, chosen], key=lambda grid: -grid.cell_lat)
        ]
        advice = collisions.advise(table)
        return {
            "collisions": [dataclasses.asdict(line) for line in table],
            "recommended_cell_size": advice.cell_size,
            "cell_size_reason": advice.reason,
            "floors": accuracies,
        }

    def _make_leaks(self) -> Facts:
        return {"findings": findings_of_store(self._folder, self._workers)}

    @functools.cached_property
    def _successors(self) -> Successors:
        return Successors(self._load("successor_offsets"), self._load("successors"))

    def _counts(self, split: str) -> Counts:
        """Counted once, however many parts are made from them."""
        if split not in self._found:
            self._found[split] = self._count(split)
        return self._found[split]

    def _count(self, split: str) -> Counts:
        size, roads = self._size(f"{split}.csv"), self.parts[split].facts["roads"]

        def advance(done: int) -> None:
            self._progress.update(size * done / roads)

        return counts.count(splits.read(self._folder / split), self._successors, self._workers, advance)

    def _start_partition(self) -> None:
        """As soon as the roads are known."""
        if "zones" in self._missing:
            _ = self._partition

    @functools.cached_property
    def _partition(self) -> Callable[[], Int64]:
        """What gives the zones: the file, or KaHIP in another process, which has begun."""
        path, successors = self._config.raw / zones.PARTITION_FILE, self._successors
        num_roads = len(successors.degree)
        if path.exists():
            return lambda: zones.read_partition(path, num_roads)
        settings = self._config.zones
        count = min(settings.count, max(1, num_roads // settings.min_roads))
        if count < settings.count:
            least = counted(settings.min_roads, "road")
            log.info("%s instead of %d: %s a zone at least", counted(count, "zone"), settings.count, least)
        question = (successors.origin, successors.roads.astype(np.int64), num_roads, count, settings.seed)
        if count == 1 or self._workers.count == 1:
            return lambda: partition(*question)
        return self._running.enter_context(Partitioning(*question)).result

    def _extent(self) -> tokens.Bounds:
        return tokens.extent(self._load("vertices"))

    def _points(self) -> dict[Centroid, Float64]:
        return {"vertex_mean": self._load("vertex_mean"), "line": self._load("line_centroid")}

    def _tokeniser(self) -> Tokeniser:
        path = self._path("occupied_cells")
        return Tokeniser.from_dict(self.parts["tokens"].facts, np.load(path) if path.exists() else None)

    def _save(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self._path(name).parent.mkdir(exist_ok=True)
            np.save(self._path(name), array, allow_pickle=False)

    def _load(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self._path(name))
        return array

    def _path(self, name: str) -> Path:
        return self._folder / "network" / f"{name}.npy"


def _geometry(roads: raw.Roads) -> Arrays:
    return {
        "line_centroid": network.line_centroids(roads),
        "vertex_mean": network.vertex_means(roads),
        "end_vertex": network.end_vertices(roads),
        "length": roads.length,
        "vertex_offsets": roads.vertex_offsets,
        "vertices": roads.vertices,
    }


def _attributes(roads: raw.Roads, centroid: Float64) -> tuple[list[str], Arrays]:
    classes, road_type = features.road_types(roads.highway)
    arrays: Arrays = {
        "attr_len": features.z_scores(np.log1p(roads.length), "length"),
        "attr_type": road_type,
        "attr_lon": features.z_scores(centroid[:, 1], "longitude"),
        "attr_lat": features.z_scores(centroid[:, 0], "latitude"),
    }
    return classes, arrays


def _graph(roads: raw.Roads, successors: Successors) -> Arrays:
    edges = network.road_graph(roads)
    return {
        "successor_offsets": successors.offsets,
        "successors": successors.roads,
        "road_edge_index": edges,
        "intersection_attr": network.intersection_attributes(roads, successors, edges),
    }
