"""Section `evaluation`: metrics of generated trips against plain Python loops.

    ours           `student_trainer.evaluate`'s measures of trips, of pairs, and their divergences
    plain loops    `straightforward/evaluate.py`

Both measure distance, radius, Hausdorff distance, DTW, EDR and the divergences of distance and radius. Real
trips, each against one whose roads were exchanged for those of the next trip from a random place on: as
far apart as trips of a poor model. The loops measure a part of the pairs, another one each round. That both agree is
checked.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import cities
from benchmarks.common import BenchmarkError, Options, Result, Table, spread
from benchmarks.straightforward import evaluate as plain
from shared import provenance, ragged
from shared.store import Trips
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate.bootstrap import Bootstrap
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.evaluate.distributions import Values, edges_of, jensen_shannon_nats, totals
from student_trainer.evaluate.measures import measure_pairs, measure_trips
from student_trainer.prepare.config import GridConfig

CITY, GRID = "sf_taxi_core", GridConfig()
LOCAL = ("hausdorff_km", "dtw_km", "edr")
Found = dict[str, npt.NDArray[np.float64]]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        pairs: measured by ours in every round.
        some: of them, measured by the loops.
        rounds: how often.
    """

    pairs: int = 5000
    some: int = 100
    rounds: int = 5


QUICK = Size(pairs=40, some=10, rounds=2)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if both ways disagree."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    network = RoadNetwork.load(store)
    trips = store.trips("train")
    real = trips.take(np.arange(min(size.pairs, len(trips))))
    made = _exchanged(real)
    _ours(network, real.take(np.arange(2)), made.take(np.arange(2)))  # compiles
    seconds: dict[str, list[float]] = {"ours": [], "plain loops": []}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(size.rounds):
        some = (np.arange(size.some) + number * size.some) % len(real)
        took, found = _timed(_ours, network, real, made)
        seconds["ours"].append(took / len(real))
        took, expected = _timed(_loops, network, real.take(some), made.take(some))
        seconds["plain loops"].append(took / len(some))
        _check(found, expected, some)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    took, _ = _timed(Bootstrap(BootstrapConfig(), len(real)).mean, found["dtw_km"])
    figures = {
        "pairs_per_s": {way: spread([1 / value for value in values]) for way, values in seconds.items()},
        "ratio": spread([b / a for a, b in zip(seconds["ours"], seconds["plain loops"], strict=True)]),
        "seconds_of_all_pairs": spread([value * len(real) for value in seconds["ours"]]),
        "bootstrap_of_a_mean_s": took,
        "grown_mib": grown,
    }
    measured = {
        **cities.facts(store),
        "cores": provenance.cores(),
        **dataclasses.asdict(size) | {"pairs": len(real)},
        "mean_roads": float(real.lengths.mean()),
    }
    notes = [
        f"{len(real):,} pairs by ours, {size.some} of them by the loops, another part each of {size.rounds} rounds; "
        "ratios of the time for a pair, within a round. Ours uses all cores, the loops one.",
        "Distance, radius, Hausdorff distance, exact DTW, EDR at 100 m, and divergences; both ways agree within 1e-9.",
        f"Peak memory grew by {grown:.0f} MiB meanwhile; the interval of a mean takes {took:.2f} s more (2,000 draws).",
    ]
    title = "Metrics of generated trips against plain loops"
    return Result("evaluation", title, measured, figures, [_table(figures)], notes)


def _exchanged(trips: Trips) -> Trips:
    """Each trip's roads up to a random place, then those of the next trip, with the trip's number of roads."""
    random = np.random.default_rng(0)
    lengths, place = trips.lengths, ragged.positions(trips.lengths)
    keep = np.repeat((random.random(len(lengths)) * lengths).astype(np.int64), lengths)
    following = np.roll(np.arange(len(lengths)), -1)
    other = np.repeat(trips.offsets[:-1][following], lengths) + place % np.repeat(lengths[following], lengths)
    return dataclasses.replace(trips, roads=np.where(place <= keep, trips.roads, trips.roads[other]))


def _ours(network: RoadNetwork, real: Trips, made: Trips) -> Found:
    sides, pairs = [measure_trips(network, side) for side in (real, made)], measure_pairs(network, real, made)
    found: Found = {name: getattr(pairs, name) for name in LOCAL}
    for name in ("distance_km", "radius_km"):
        values = [getattr(side, name) for side in sides]
        found |= {f"{name} real": values[0], f"{name} made": values[1]}
        edges = edges_of(values[0])
        counts = [totals(Values.one_each(side).binned(edges)) for side in values]
        found[f"divergence of {name}"] = jensen_shannon_nats(counts[0], counts[1])
    return found


def _loops(network: RoadNetwork, real: Trips, made: Trips) -> Found:
    points = [tuple(point) for point in network.line_centroid.tolist()]
    sides = [
        [
            [points[road] for road in side.roads[a:b].tolist()]
            for a, b in zip(side.offsets[:-1], side.offsets[1:], strict=True)
        ]
        for side in (real, made)
    ]
    pairs = list(zip(*sides, strict=True))
    found = {name: np.array([getattr(plain, name)(a, b) for a, b in pairs]) for name in LOCAL}
    for name in ("distance_km", "radius_km"):
        values = [[getattr(plain, name)(trip) for trip in side] for side in sides]
        found |= {f"{name} real": np.array(values[0]), f"{name} made": np.array(values[1])}
        found[f"divergence of {name}"] = np.array(plain.divergence_nats(values[0], values[1]))
    return found


def _timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def _check(found: Found, expected: Found, some: npt.NDArray[np.int64]) -> None:
    for name, values in expected.items():
        if values.ndim and not np.allclose(found[name][some], values, rtol=1e-9, atol=1e-9):
            raise BenchmarkError(f"both ways to measure {name} disagree")


def _table(figures: dict[str, Any]) -> Table:
    ratio = figures["ratio"]
    rows: Sequence[Sequence[str]] = [
        ["ours", f"{figures['pairs_per_s']['ours']['median']:,.0f}", ""],
        [
            "plain loops",
            f"{figures['pairs_per_s']['plain loops']['median']:,.1f}",
            f"{ratio['median']:,.0f} ({ratio['min']:,.0f} to {ratio['max']:,.0f})",
        ],
    ]
    return Table("pairs a second", ["way", "pairs/s", "ours is so many times as fast"], rows)
