"""Section `prepare`: from raw files to what a batch is made of, against the straightforward way; a whole city by part.

The straightforward way computes every feature of every trip once and keeps a file for each. Ours keeps what was read,
and computes features when a batch is built; so there are two comparisons: preparing alone, and preparing together with
building batches of all trips, which gives all that the files hold. The features of both are compared first.

What concerns the roads alone is the same work for both ways and is measured apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cities
from benchmarks.common import Options, Result, Table, rotated, spread
from benchmarks.straightforward import prepare as straightforward
from benchmarks.straightforward.collate import Matrices, matrices_by_pair, matrices_by_trip
from shared.store import SPLITS, Store
from student_trainer.data.batch import build_batch
from student_trainer.data.loader import by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.prepare import build
from student_trainer.prepare import run as preparing
from student_trainer.prepare.config import GridConfig, PrepareConfig

CITY = "sf_taxi"
BATCH_SIZE = 64
OURS, WITH_FEATURES = "ours", "ours, and every feature"
WAYS = {"files, matrices by numpy": matrices_by_trip, "files, all in plain Python": matrices_by_pair}
TARGET_SECONDS = 90.0
"""A whole city should take less, on two cores."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        trips: of the comparison.
        rounds: how often every way has its turn, and how often the whole city is prepared.
    """

    trips: int = 2000
    rounds: int = 3


QUICK = Size(trips=50, rounds=1)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the two ways give different features."""
    size = QUICK if options.quick else Size()
    raw, is_demo = cities.raw_city(options, CITY)
    grid = cities.DEMO_GRID if is_demo else GridConfig()
    work = options.work / "prepare"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        some = PrepareConfig(raw=_first_trips(raw, work / "raw", size.trips), out=work / "some", grid=grid)
        preparing.prepare(some)  # makes the roads, and compiles
        _check(some, work / "files")
        compared = _compare(some, work, size.rounds)
        whole = _whole(PrepareConfig(raw=raw, out=work / "whole", grid=grid), size.rounds)
    figures = {"some_trips": compared, "whole_city": whole}
    store = Store(work / "whole")
    settings = {**cities.facts(store), **dataclasses.asdict(size)}
    settings["splits"] = {split: store.manifest["splits"][split]["trips"] for split in SPLITS}
    notes = _notes(figures, settings)
    shutil.rmtree(work)
    tables = [_comparison_table(compared), _parts_table(whole)]
    return Result("prepare", "From raw files to features", settings, figures, tables, notes)


def _first_trips(raw: Path, out: Path, count: int) -> Path:
    """The city with the first trips of train alone, and a few others for what needs them."""
    out.mkdir()
    for name in ("roadmap.geo", "roadmap.rel"):
        shutil.copyfile(raw / name, out / name)
    for split in SPLITS:
        with open(raw / f"{split}.csv", "rb") as stream, open(out / f"{split}.csv", "wb") as copy:
            copy.writelines(itertools.islice(stream, 1 + count))
    return out


def _check(config: PrepareConfig, folder: Path) -> None:
    """Both ways agree on every trip."""
    store = Store(config.out)
    network, trips = RoadNetwork.load(store), store.trips("train")
    for matrices in WAYS.values():
        features = straightforward.prepare(network, config.raw / "train.csv", folder, matrices)
        shutil.rmtree(folder)
        for index in np.split(np.arange(len(trips)), range(BATCH_SIZE, len(trips), BATCH_SIZE)):
            straightforward.check_equal(
                [features[row] for row in trips.source_rows[index]], build_batch(network, trips, index)
            )


def _compare(config: PrepareConfig, work: Path, rounds: int) -> dict[str, Any]:
    """Seconds of every way by turns, and ratios within each round."""
    network = RoadNetwork.load(Store(config.out))

    def ours() -> None:
        """The whole job where nothing but train is new: digests of the inputs, the train part, the exchange."""
        preparing.prepare(config)

    def with_features() -> None:
        preparing.prepare(config)
        trips = Store(config.out).trips("train")
        for index in by_length(trips.lengths, BATCH_SIZE):
            build_batch(network, trips, index)

    ways: dict[str, Callable[[], object]] = {OURS: ours, WITH_FEATURES: with_features}
    for name, matrices in WAYS.items():

        def files(matrices: Matrices = matrices) -> None:
            straightforward.prepare(network, config.raw / "train.csv", work / "files", matrices)

        ways[name] = files
    seconds = {name: np.empty(rounds) for name in ways}
    for number in range(rounds):
        for name in rotated(list(ways), number):
            shutil.rmtree(work / "files", ignore_errors=True)
            shutil.rmtree(config.out / "train", ignore_errors=True)
            seconds[name][number] = _seconds(ways[name])
            preparing.prepare(config)
    ratios = {
        f"{name} / {mine}": spread((seconds[name] / seconds[mine]).tolist())
        for mine in (OURS, WITH_FEATURES)
        for name in WAYS
    }
    return {"seconds": {name: spread(found.tolist()) for name, found in seconds.items()}, "ratio": ratios}


def _whole(config: PrepareConfig, rounds: int) -> dict[str, Any]:
    """Seconds of a whole city from nothing, by part; of a run that finds all unchanged; of one with another val.csv."""
    total, unchanged, changed, parts = [], [], [], []
    for _ in range(rounds):
        shutil.rmtree(config.out, ignore_errors=True)
        start = time.perf_counter()
        parts.append(preparing.prepare(config).seconds)
        total.append(time.perf_counter() - start)
        unchanged.append(_seconds(lambda: preparing.prepare(config)))
        shutil.rmtree(config.out / "val")
        changed.append(_seconds(lambda: preparing.prepare(config)))
    return {
        "seconds": spread(total),
        "parts": {name: spread([found[name] for found in parts]) for name in build.ORDER},
        "unchanged": spread(unchanged),
        "only_val": spread(changed),
        "under_90_s": max(total) < TARGET_SECONDS,
    }


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def _comparison_table(compared: dict[str, Any]) -> Table:
    def text(ratio: dict[str, float] | None) -> str:
        return f"{ratio['median']:.0f} ({ratio['min']:.0f} to {ratio['max']:.0f})" if ratio else ""

    ratios, mine = compared["ratio"], (OURS, WITH_FEATURES)
    rows = [
        [name, f"{seconds['median']:.3f}", *(text(ratios.get(f"{name} / {way}")) for way in mine)]
        for name, seconds in compared["seconds"].items()
    ]
    return Table("trips alone, without the roads", ["way", "seconds", "ratio to ours", "to ours with features"], rows)


def _parts_table(whole: dict[str, Any]) -> Table:
    lines = {
        "the whole city": whole["seconds"],
        **{f"- {name}": found for name, found in whole["parts"].items()},
        "nothing has changed": whole["unchanged"],
        "only val.csv has": whole["only_val"],
    }
    rows = [[name, f"{s['median']:.2f}", f"{s['min']:.2f} to {s['max']:.2f}"] for name, s in lines.items()]
    return Table("the job by part", ["part", "seconds", "least to most"], rows)


def _notes(figures: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    whole = figures["whole_city"]
    counts = ", ".join(f"{count:,} {split}" for split, count in settings["splits"].items())
    return [
        f"First table: {settings['trips']:,} trips of {settings['city']}. Ours: the whole job on a store whose other "
        "parts are there (reads and hashes every input, writes train, puts the store in place); then also batches of "
        f"{BATCH_SIZE} trips, each trip once, which hold all features that the files hold, and the candidates' tokens.",
        "The files: rows by the csv module, times by strptime, candidate after candidate in plain Python with `math`, "
        "one torch.save a trip; the pairwise matrices by numpy a trip at a time, or pair after pair. Successors and "
        "points of the roads are given. Both gave the same candidates and labels, and the same distances and angles "
        "within float32's rounding.",
        f"Second table: {counts} trips, from nothing: {whole['seconds']['median']:.1f} s, "
        f"{'always' if whole['under_90_s'] else 'NOT always'} under {TARGET_SECONDS:.0f} s. Parts are made one after "
        "another. The work on the roads (roads, tokens, zones) is the same for every way to prepare trips; the "
        "partitioner runs beside the other parts, and `zones` is the wait for it at the end.",
    ]
