"""Section `collate`: what a batch costs, and how much of it is padding.

Batches are built by the trainer's own function and, over the same trips, in the straightforward ways
(`straightforward/collate.py`); that they agree is checked before anything is timed. Padding depends on the order of the
trips alone: shares are exact counts over an epoch, for the trainer's order and for others.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import cities
from benchmarks.common import Options, Result, Table, rotated, spread
from benchmarks.straightforward.collate import build_padded, check_equal, matrices_by_pair, matrices_by_trip
from shared.arrays import Int64
from shared.store import Store
from student_trainer.data.batch import build_batch
from student_trainer.data.loader import TripOrder, padded_share
from student_trainer.data.network import RoadNetwork
from student_trainer.prepare.config import GridConfig
from student_trainer.train.config import DataConfig

CITIES, GRID = ("sf_taxi", "sf_taxi_core"), GridConfig()
"""Batches are built of the first one's trips; padding is counted in all."""
BATCH_SIZE = 64
SEED = 42
OURS, BY_TRIP, BY_PAIR = "ours", "matrices of a trip in numpy", "plain loops"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured: batches that are built, and bucket sizes whose padding is counted."""

    batches: int = 40
    buckets: tuple[int, ...] = (1, 8, 32, 128)


QUICK = Size(batches=2, buckets=(1, 4))


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the ways do not build the same batch."""
    size = QUICK if options.quick else Size()
    stores = [cities.open_store(options, name, GRID) for name in CITIES]
    by_name = {cities.name(store): store for store in stores}
    figures = {
        "build": _build(stores[0], size),
        "padding": {name: _padding(store, size.buckets) for name, store in by_name.items()},
    }
    settings = {
        "store": {name: store.fingerprint for name, store in by_name.items()},
        "data": "; ".join(cities.facts(store)["data"] for store in by_name.values()),
        "built": cities.name(stores[0]),
        "batch_size": BATCH_SIZE,
        "batch": DataConfig().model_dump(mode="json"),
        **dataclasses.asdict(size),
    }
    tables = [_build_table(figures["build"]), *(_padding_table(*item) for item in figures["padding"].items())]
    return Result("collate", "Batches: time to build, and padding", settings, figures, tables, _notes(figures, size))


def _build(store: Store, size: Size) -> dict[str, Any]:
    """Milliseconds of every way and ratios within each batch, by turns."""
    config, network, trips = DataConfig(), RoadNetwork.load(store), store.trips("train")
    every = np.arange(len(trips))
    batches = TripOrder(every, trips.lengths - 1, BATCH_SIZE, config.bucket_batches, SEED).epoch(0)[: size.batches]
    top_k = config.candidate_top_k
    ways: dict[str, Callable[[Int64], object]] = {
        OURS: lambda index: build_batch(network, trips, index, top_k),
        BY_TRIP: lambda index: build_padded(network, trips, index, matrices_by_trip, top_k),
        BY_PAIR: lambda index: build_padded(network, trips, index, matrices_by_pair, top_k),
    }
    for matrices in (matrices_by_trip, matrices_by_pair):
        check_equal(build_padded(network, trips, batches[0], matrices, top_k), build_batch(network, trips, batches[0]))
    taken = {name: np.empty(len(batches)) for name in ways}
    for number, index in enumerate(batches):
        for name in rotated(list(ways), number):
            taken[name][number] = _milliseconds(ways[name], index)
    return {
        "ms": {name: spread(ms.tolist()) for name, ms in taken.items()},
        "ratio": {name: spread((taken[name] / taken[OURS]).tolist()) for name in (BY_TRIP, BY_PAIR)},
        "trips": spread([len(index) for index in batches]),
        "positions": spread([int(trips.lengths[index].sum()) - len(index) for index in batches]),
    }


def _milliseconds(way: Callable[[Int64], object], index: Int64) -> float:
    start = time.perf_counter()
    way(index)
    return 1000 * (time.perf_counter() - start)


def _padding(store: Store, buckets: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Of an epoch, for each order: padded shares, how unevenly a position weighs, and the largest batch."""
    steps = store.trips("train").lengths - 1
    found = {}
    for bucket in buckets:
        ours = TripOrder(np.arange(len(steps)), steps, BATCH_SIZE, bucket, SEED).epoch(0)
        if bucket == 1:
            found["only shuffled"] = _judge([steps[batch] for batch in ours])
            continue
        found[f"{bucket}, equal trips"] = _judge([steps[batch] for batch in _equal_trips(steps, bucket)])
        found[f"{bucket}, equal positions"] = _judge([steps[batch] for batch in ours])
    return found


def _equal_trips(steps: Int64, bucket_batches: int) -> list[Int64]:
    """The usual order: sorted within buckets, then cut into batches of `BATCH_SIZE` trips."""
    order = np.random.default_rng(SEED).permutation(len(steps))
    size = BATCH_SIZE * bucket_batches
    buckets = [order[i : i + size] for i in range(0, len(order), size)]
    batches: list[Int64] = []
    for bucket in buckets:
        shortest_first = bucket[np.argsort(steps[bucket], kind="stable")]
        batches += [shortest_first[i : i + BATCH_SIZE] for i in range(0, len(bucket), BATCH_SIZE)]
    return batches


def _judge(batches: Sequence[Int64]) -> dict[str, float]:
    positions = np.array([batch.sum() for batch in batches])
    weight = 1 / positions  # of a position in the loss of its step, which is a mean
    mean = np.average(weight, weights=positions)
    return {
        "padded_share": padded_share(batches),
        "padded_pairs_share": padded_share(batches, power=2),
        "weight_deviation": float(np.sqrt(np.average((weight / mean - 1) ** 2, weights=positions))),
        "largest_pairs": float(max(len(batch) * int(batch.max()) ** 2 for batch in batches)),
        "fewest_trips": float(min(len(batch) for batch in batches)),
        "most_trips": float(max(len(batch) for batch in batches)),
        "batches": float(len(batches)),
    }


def _build_table(build: dict[str, Any]) -> Table:
    rows = []
    for name, ms in build["ms"].items():
        ratio = build["ratio"].get(name, {"median": 1.0, "min": 1.0, "max": 1.0})
        rows.append(
            [name, f"{ms['median']:.2f}", f"{ratio['median']:.1f}", f"{ratio['min']:.1f} to {ratio['max']:.1f}"]
        )
    return Table("a batch", ["way", "ms", "ratio to ours", "least to most"], rows)


def _padding_table(city: str, padding: dict[str, dict[str, float]]) -> Table:
    rows = [
        [
            name,
            f"{100 * found['padded_share']:.1f} %",
            f"{100 * found['padded_pairs_share']:.1f} %",
            f"{100 * found['weight_deviation']:.1f} %",
            f"{found['largest_pairs'] / 1e6:.2f} M",
            f"{found['fewest_trips']:.0f} to {found['most_trips']:.0f}",
        ]
        for name, found in padding.items()
    ]
    header = ["batches sorted together", "padded positions", "padded pairs", "a position's weight deviates by"]
    return Table(f"padding, {city}", [*header, "pairs of the largest batch", "trips of a batch"], rows)


def _notes(figures: dict[str, Any], size: Size) -> list[str]:
    slower = ", ".join(f"{name}: {ratio['median']:.0f}" for name, ratio in figures["build"]["ratio"].items())
    return [
        f"Ratios are taken within each of {size.batches} batches of {BATCH_SIZE} trips on average; medians: {slower}. "
        "Both straightforward ways take candidate after candidate in plain Python. All built the same batch.",
        f"Sorted together: trips are shuffled, and so many batches of them at a time are sorted by length; the "
        f"trainer's way is {DataConfig().bucket_batches}, equal positions.",
        "A position's weight: the loss is a mean over the positions of a step, so where batches hold as many trips "
        "each, a position of a short trip weighs more. Deviation (standard, of the mean weight) over all positions.",
    ]
