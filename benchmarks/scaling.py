"""Section `scaling`: what a second rank brings, on the cores of one machine.

    1 rank x 1 thread       one core
    1 rank x 2 threads      two cores within each operation
    2 ranks x 1 thread      two cores, each with half of every micro-batch

The same steps at the same global batch, without a teacher. Ranks are processes that `torchrun` starts with this
module, and they make their steps as `student_trainer.train.run` does; the arms take turns. What the ranks spend on
each other (waiting included) is part of the step and shown apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import cities
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table, rotated, spread
from shared.store import Store
from shared.training.torch_ranks import join
from student_trainer.data.loader import Prefetcher
from student_trainer.model.config import ModelConfig
from student_trainer.prepare.config import GridConfig
from student_trainer.train.config import OptimConfig, RuntimeConfig, TrainConfig
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import prepare_step
from student_trainer.train.session import Session

CITY, GRID = "sf_taxi_core", GridConfig()


@dataclasses.dataclass(frozen=True)
class Arm:
    """So many processes with so many threads each."""

    ranks: int
    threads: int

    @property
    def name(self) -> str:
        """Its key in the figures."""
        return f"{self.ranks} x {self.threads}"


BASE = Arm(1, 1)
ARMS = (BASE, Arm(1, 2), Arm(2, 1))


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often every arm has its turn.
        warm, steps: of a turn; the first are not counted.
        batch_size: trips of a step, of all ranks.
    """

    rounds: int = 4
    warm: int = 5
    steps: int = 30
    batch_size: int = 64


QUICK = Size(rounds=1, warm=1, steps=2, batch_size=16)


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the arms did not learn the same."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    rounds = [{arm.name: _turn(store, arm, size) for arm in rotated(ARMS, number)} for number in range(size.rounds)]
    for turns in rounds:
        _check_losses(turns)
    figures = {arm.name: _figures(arm, rounds, size) for arm in ARMS}
    measured = {
        **cities.facts(store),
        "train": _settings(store.path, BASE.threads, size).model_dump(mode="json", include={"model", "batch", "optim"}),
        **dataclasses.asdict(size),
    }
    notes = [
        f"Medians of {size.rounds} rounds of {size.steps} steps ({size.warm} before them not counted), the arms by "
        "turns; ratios are taken within a round.",
        "Every step learns from the same trips in all arms, and the losses agree.",
        "Two ranks share one machine's memory and cores: this shows what the ranks cost, not what more machines bring.",
    ]
    return Result(
        "scaling", "One rank and two, on the cores of one machine", measured, figures, [_table(figures)], notes
    )


def _turn(store: Store, arm: Arm, size: Size) -> dict[str, float]:
    """Milliseconds of a step, of these for other ranks, and the mean loss, as the arm's first rank reports them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arm.ranks)]
    command = [*launcher, "-m", "benchmarks.scaling", "--store", str(store.path), "--threads", str(arm.threads)]
    command += ["--size", json.dumps(dataclasses.asdict(size))]
    environment = os.environ | {"OMP_NUM_THREADS": str(arm.threads)}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{arm.name} did not run: {done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _settings(store: Path, threads: int, size: Size) -> TrainConfig:
    return TrainConfig(
        data=store,
        out=Path("unused"),
        model=ModelConfig(road_id_dim=32, road_attr_dim=8),
        optim=OptimConfig(batch_size=size.batch_size),
        runtime=RuntimeConfig(device="cpu", threads=threads),
    )


def _figures(arm: Arm, rounds: Sequence[dict[str, dict[str, float]]], size: Size) -> dict[str, Any]:
    turns = [turns[arm.name] for turns in rounds]
    return {
        "step_ms": spread([turn["step_ms"] for turn in turns]),
        "ranks_ms": spread([turn["ranks_ms"] for turn in turns]),
        "trips_per_s": spread([1000 * size.batch_size / turn["step_ms"] for turn in turns]),
        "speed_ratio": spread([turns[BASE.name]["step_ms"] / turns[arm.name]["step_ms"] for turns in rounds]),
        "loss": statistics.median(turn["loss"] for turn in turns),
    }


def _check_losses(turns: dict[str, dict[str, float]]) -> None:
    losses = {name: turn["loss"] for name, turn in turns.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3 * max(losses.values()):
        raise BenchmarkError(f"the same steps gave other losses: {losses}")


def _table(figures: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{found['step_ms']['median']:.1f}",
            f"{found['ranks_ms']['median']:.1f}",
            f"{found['trips_per_s']['median']:.0f}",
            f"{found['speed_ratio']['median']:.2f}",
            f"{found['speed_ratio']['min']:.2f} to {found['speed_ratio']['max']:.2f}",
        ]
        for name, found in figures.items()
    ]
    header = ["ranks x threads", "step ms", "of these for other ranks", "trips/s", f"speed, in {BASE.name}"]
    return Table("steps", [*header, "least to most"], rows)


def rank(store: Store, threads: int, size: Size) -> None:
    """What one process of an arm does; the first prints what it measured."""
    torch.set_num_threads(threads)
    settings = _settings(store.path, threads, size)
    with join(0.0) as ranks:
        session = Session(settings, store, Runtime.of(settings.runtime, torch.device("cpu"), ranks))
        plan = itertools.islice(session.schedule.from_step(0), size.warm + size.steps)
        lookahead = settings.client.lookahead
        graph = session.model.graph
        with Prefetcher(lambda planned: prepare_step(session.feed, graph, planned, ranks), plan, lookahead) as steps:
            for number, step in enumerate(steps):
                if number == size.warm:
                    session.trainer.take_metrics(0.0)
                    start = time.perf_counter()
                session.trainer.train_step(step)
            metrics = session.trainer.take_metrics(time.perf_counter() - start)
        found = {"step_ms": metrics["perf/step_ms"], "ranks_ms": metrics.get("perf/ranks_ms", 0.0)}
        if ranks.is_first:
            print(json.dumps(found | {"loss": metrics["train/loss"]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--size", type=json.loads, required=True)
    arguments = parser.parse_args()
    rank(Store(arguments.store), arguments.threads, Size(**arguments.size))
