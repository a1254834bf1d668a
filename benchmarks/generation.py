"""Section `generation`: beam search of many trips at once, a step at a time, against one trip and all steps anew.

    ours         `student_trainer.generate`, as the command runs it
    ours, alone  the same with one trip at a time: what is left without batching
    by prefix    `straightforward/generate.py`: one trip at a time, at every depth each beam's prefix encoded anew
    by depth     the same, the prefixes of a depth in one forward pass

All search for the same OD pairs with the same weights, of a short training run; the slower ways for the first of them.
Every turn has a process of its own (`python -m benchmarks.generation`), so that peak memory is its own. That they find
the same trips is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import cities, meters
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.straightforward import generate as plain
from benchmarks.straightforward.student import StraightforwardHOSER
from shared import files, provenance
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import workers
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.pairs import Pairs, draw
from student_trainer.model import students
from student_trainer.model.config import ModelConfig
from student_trainer.model.weights import load_model
from student_trainer.prepare.config import GridConfig
from student_trainer.train import run as training
from student_trainer.train.config import DataConfig, LogConfig, OptimConfig, TrainConfig

CITY, GRID, TOP_K, SEED = "sf_taxi_core", GridConfig(), 64, 42
OURS, ALONE, BY_PREFIX, BY_DEPTH = "ours", "ours, alone", "by prefix", "by depth"
WAYS = (OURS, ALONE, BY_PREFIX, BY_DEPTH)
SAME = 0.98
"""Share of trips that must have the same roads: a choice between two nearly equal beams hangs on the last bits."""
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: architecture.
        train_trips, epochs: of the training run.
        pairs: OD pairs of our turn; few: of the other ones.
        lanes: trips that we search for at once.
        rounds: turns of each way.
    """

    model: ModelConfig
    train_trips: int = 20_000
    epochs: int = 1
    pairs: int = 2000
    few: int = 30
    lanes: int = 128
    rounds: int = 3


FULL = Size(model=ModelConfig())
QUICK = Size(
    model=ModelConfig(road_id_dim=16, road_attr_dim=4), train_trips=0, epochs=4, pairs=64, few=8, lanes=16, rounds=1
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a process did.

    Attributes:
        seconds: of the search.
        roads: of each trip by pair; empty where none has arrived.
        grown_mib: peak of the resident size during the search beyond what it was before.
    """

    seconds: float
    roads: list[list[int]]
    grown_mib: float


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the ways find different trips."""
    size = QUICK if options.quick else FULL
    store = cities.open_store(options, CITY, GRID)
    weights = _train(store, size, options.work)
    rounds = []
    for number in range(size.rounds):
        turns = {way: _turn(way, store, weights, options.quick) for way in rotated(WAYS, number)}
        _check(turns)
        rounds.append(turns)
    figures = _figures(rounds)
    settings = {
        **cities.facts(store),
        "search": SearchConfig().model_dump(mode="json"),
        "threads": provenance.cores(),
        **dataclasses.asdict(size),
        "model": size.model.model_dump(mode="json"),
    }
    title = "Beam search against the straightforward one"
    return Result("generation", title, settings, figures, [_table(figures)], _notes(settings, figures))


def _train(store: Store, size: Size, work: Path) -> Path:
    """A checkpoint of a short run, made once."""
    out = work / "generation" / files.digest(store.fingerprint, repr(size.model))[:12]
    best = out / "checkpoints" / "best.pt"
    if not best.exists():
        settings = TrainConfig(
            data=store.path,
            out=out,
            model=size.model,
            batch=DataConfig(train_trips=size.train_trips, val_trips=100),
            optim=OptimConfig(epochs=size.epochs),
            log=LogConfig(tensorboard=False),
        )
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            training.run(settings)
    return best


def _turn(way: str, store: Store, weights: Path, quick: bool) -> Turn:
    command = [
        sys.executable,
        "-m",
        "benchmarks.generation",
        way,
        "--store",
        str(store.path),
        "--weights",
        str(weights),
    ]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise BenchmarkError(f"the turn of {way} failed; its log is above")
    return Turn(**json.loads(done.stdout))


def _check(turns: dict[str, Turn]) -> None:
    few = len(turns[ALONE].roads)
    if turns[ALONE].roads != turns[OURS].roads[:few]:
        raise BenchmarkError("a trip depends on the trips that are searched with it")
    same = _same(turns)
    if same < SAME:
        raise BenchmarkError(f"only {same:.1%} of the trips are those of the straightforward ways")


def _same(turns: dict[str, Turn]) -> float:
    """Least share of the straightforward ways' trips that are ours."""
    shares = []
    for way in (BY_PREFIX, BY_DEPTH):
        theirs = turns[way].roads
        shares.append(sum(a == b for a, b in zip(theirs, turns[OURS].roads, strict=False)) / len(theirs))
    return min(shares)


def _figures(rounds: Sequence[dict[str, Turn]]) -> dict[str, Any]:
    """Of all ways; ratios are taken within a round."""

    def pace(turn: Turn) -> float:
        return len(turn.roads) / turn.seconds

    def steps(turn: Turn) -> float:
        return sum(len(roads) - 1 for roads in turn.roads if roads) / len(turn.roads)

    return {
        **{
            way: {
                "trips_per_s": spread([pace(turns[way]) for turns in rounds]),
                "grown_mib": spread([turns[way].grown_mib for turns in rounds]),
                "trips": len(rounds[0][way].roads),
                "steps_per_trip": steps(rounds[0][way]),
                "arrived": sum(bool(roads) for roads in rounds[0][way].roads) / len(rounds[0][way].roads),
            }
            for way in WAYS
        },
        "ratio": {way: spread([pace(turns[OURS]) / pace(turns[way]) for turns in rounds]) for way in WAYS[1:]},
        "ratio_a_road": {
            way: spread(
                [pace(turns[OURS]) * steps(turns[OURS]) / (pace(turns[way]) * steps(turns[way])) for turns in rounds]
            )
            for way in WAYS[1:]
        },
        "same_roads": spread([_same(turns) for turns in rounds]),
    }


def _table(figures: dict[str, Any]) -> Table:
    rows = []
    for way in WAYS:
        one = {"median": 1.0, "min": 1.0, "max": 1.0}
        found, ratio, a_road = figures[way], figures["ratio"].get(way, one), figures["ratio_a_road"].get(way, one)
        rows.append(
            [
                way,
                f"{found['trips_per_s']['median']:.2f}",
                f"{ratio['median']:.1f}",
                f"{ratio['min']:.1f} to {ratio['max']:.1f}",
                f"{a_road['median']:.1f} ({a_road['min']:.1f} to {a_road['max']:.1f})",
                f"{found['grown_mib']['median']:.0f}",
                str(found["trips"]),
                f"{found['steps_per_trip']:.1f}",
            ]
        )
    header = ["way", "trips/s", "ours to it", "least to most", "a road", "memory, MiB", "trips", "steps per trip"]
    return Table("beam search", header, rows)


def _notes(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    return [
        f"Width {settings['search']['width']}, the default settings; {settings['threads']} threads for all ways. The "
        "time is that of the search alone: the weights are read and the network is embedded before. Medians; ratios "
        "within a round.",
        f"{figures[OURS]['arrived']:.1%} of the trips arrive. Same roads as both straightforward ways': at least "
        f"{figures['same_roads']['median']:.1%}; alone and together: all, to the bit.",
        "A road: the ratio of roads a second, for the slower ways search for the first pairs only, whose trips are "
        "shorter or longer.",
        "Memory: the most that the process held during the search beyond what it held before.",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """One turn in this process; its `Turn` as JSON on stdout."""
    parser = argparse.ArgumentParser("benchmarks.generation", description=main.__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(argv)
    size, store = QUICK if arguments.quick else FULL, Store(arguments.store)
    trips = store.trips("test")
    pairs = draw(trips, min(size.pairs, len(trips)), SEED, "test")
    count = len(pairs) if arguments.way == OURS else min(size.few, len(pairs))
    todo = [pair for pair in range(count) if pairs.origin[pair] != pairs.destination[pair]]
    roads: list[list[int]] = [[]] * count
    search = _SEARCHES[arguments.way](store, arguments.weights, pairs, size)
    for _ in search(todo[:1]):  # compiles what is compiled at its first use
        pass
    before, start = meters.reset_peak_rss(), time.perf_counter()
    for pair, found in search(todo):
        roads[pair] = found
    turn = Turn(time.perf_counter() - start, roads, (meters.peak_rss() - before) / MIB)
    print(json.dumps(dataclasses.asdict(turn)))
    return 0


Search = Callable[[Sequence[int]], Iterator[tuple[int, list[int]]]]
"""From pairs to pairs and their trips' roads, none where none has arrived."""


def _ours(store: Store, weights: Path, pairs: Pairs, size: Size, alone: bool = False) -> Search:
    model, scale = load_model(weights, store)
    student = students.architecture_of(model).decoder(model, RoadNetwork.load(store), scale, TOP_K)
    lanes, threads = (1, 1) if alone else (size.lanes, provenance.cores())

    def search(todo: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        searches = [BeamSearch(student, pairs, SearchConfig(), lanes) for _ in range(threads)]
        for found in workers.search([search.run for search in searches], todo):
            yield found.pair, found.roads.tolist() if found.status == "arrived" else []

    return search


def _straightforward(store: Store, weights: Path, pairs: Pairs, _: Size, together: bool) -> Search:
    torch.set_num_threads(provenance.cores())
    ours, scale = load_model(weights, store)
    network = RoadNetwork.load(store)
    assert isinstance(ours.config, ModelConfig)
    model = StraightforwardHOSER(ours.config, network)
    model.load_state_dict(ours.state_dict())
    student = plain.Student(model.eval(), network, scale, TOP_K)
    rules = plain.Rules(together=together)

    def search(todo: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        for pair in todo:
            values = (int(array[pair]) for array in (pairs.origin, pairs.destination, pairs.departure))
            path = plain.beam_search(student, rules, *values)
            yield pair, path.roads if path is not None else []

    return search


_SEARCHES: dict[str, Callable[[Store, Path, Pairs, Size], Search]] = {
    OURS: _ours,
    ALONE: functools.partial(_ours, alone=True),
    BY_PREFIX: functools.partial(_straightforward, together=False),
    BY_DEPTH: functools.partial(_straightforward, together=True),
}


if __name__ == "__main__":
    sys.exit(main())
