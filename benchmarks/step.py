"""Section `step`: a training step against the straightforward one: time, where it goes, and memory.

    ours              `Trainer.train_step`
    straightforward   the model of `straightforward/student.py` with the same parameters, optimiser and batches

Every turn has a process of its own (`python -m benchmarks.step`), so that what one keeps does not count for the next;
both start from the same weights, make the same steps and must learn the same. There is no teacher: for that see
`overlap`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import cities, meters
from benchmarks.common import REPOSITORY, TORCH_THREADS, BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.straightforward import student
from benchmarks.straightforward.collate import build_padded, matrices_by_trip
from benchmarks.straightforward.student import PaddedTensors, StraightforwardHOSER
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.prepare.config import GridConfig
from student_trainer.train.config import OptimConfig, TrainConfig
from student_trainer.train.optim import build_optimizer, learning_rate
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, prepare_step
from student_trainer.train.session import Session

CITY, GRID = "sf_taxi", GridConfig()
WAYS = ("ours", "straightforward")
PARTS = ("encoder_forward", "encoder_backward", "rest")
FIRST_LOSS, LATER_LOSS = 1e-4, 1e-2
"""Greatest relative difference of the loss of the first step, and of later ones, which other roundings have reached."""
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: architecture.
        batch_size: trips of a step.
        rounds: how often both have their turn.
        warm, steps: of a turn; the first are not timed, but count for memory.
    """

    model: ModelConfig
    batch_size: int = 64
    rounds: int = 3
    warm: int = 2
    steps: int = 8

    def settings(self, store: Path, work: Path) -> TrainConfig:
        """Of the session."""
        return TrainConfig(
            data=store, out=work / "run", model=self.model, optim=OptimConfig(batch_size=self.batch_size)
        )


FULL = Size(model=ModelConfig())
QUICK = Size(model=ModelConfig(road_id_dim=16, road_attr_dim=4), batch_size=16, rounds=1, warm=1, steps=3)

Step = Callable[[], float]
"""Makes a training step; returns its loss."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the steps of a process took.

    Attributes:
        ms: of each timed step.
        parts_ms: medians of `PARTS`.
        grown_mib: peak of the resident size over all steps, beyond what it was before the first.
        losses: of all steps.
    """

    ms: list[float]
    parts_ms: dict[str, float]
    grown_mib: float
    losses: list[float]


class EncoderClock:
    """Seconds that a module spends in forward passes, and in backward passes until its last parameter has its gradient.

    The module runs first and depends on nothing but its parameters: autograd goes back through it last, and through
    everything else before the first of its outputs.
    """

    def __init__(self, module: nn.Module) -> None:
        self._forward_began = self._backward_mark = 0.0
        self.forward = self.backward = 0.0
        module.register_forward_pre_hook(self._start_forward)
        module.register_forward_hook(self._end_forward)
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self._reach)  # type: ignore[no-untyped-call]

    def take(self) -> tuple[float, float]:
        """Seconds forward and backward since the last call."""
        taken, self.forward, self.backward = (self.forward, self.backward), 0.0, 0.0
        return taken

    def _start_forward(self, *_: object) -> None:
        self._forward_began = time.perf_counter()

    def _end_forward(self, _: nn.Module, __: object, outputs: Sequence[Tensor]) -> None:
        self.forward += time.perf_counter() - self._forward_began
        if learning := [output for output in outputs if output.requires_grad]:
            torch.autograd.graph.register_multi_grad_hook(learning, self._start_backward, mode="any")

    def _start_backward(self, _: Tensor) -> None:
        self._backward_mark = time.perf_counter()

    def _reach(self, _: Tensor) -> None:
        now = time.perf_counter()
        self.backward += now - self._backward_mark
        self._backward_mark = now


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the two do not learn the same."""
    size = QUICK if options.quick else FULL
    store = cities.open_store(options, CITY, GRID)
    rounds = []
    for number in range(size.rounds):
        rounds.append({way: _turn(way, store, options) for way in rotated(WAYS, number)})
        _check_losses(rounds[-1])
    figures = _figures(rounds)
    settings = {
        **cities.facts(store),
        "threads": TORCH_THREADS,
        **dataclasses.asdict(size),
        "model": size.model.model_dump(mode="json"),
    }
    title = "A training step against the straightforward one"
    return Result("step", title, settings, figures, [_table(figures)], _notes(settings, figures))


def _turn(way: str, store: Store, options: Options) -> Turn:
    command = [sys.executable, "-m", "benchmarks.step", way, "--store", str(store.path), "--work", str(options.work)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise BenchmarkError(f"the turn of {way} failed; its log is above")
    return Turn(**json.loads(done.stdout))


def _check_losses(turns: dict[str, Turn]) -> None:
    for number, losses in enumerate(zip(*(turn.losses for turn in turns.values()), strict=True)):
        if max(losses) - min(losses) > (LATER_LOSS if number else FIRST_LOSS) * max(losses):
            raise BenchmarkError(f"the same step from the same weights gave other losses at step {number}: {losses}")


def _figures(rounds: Sequence[dict[str, Turn]]) -> dict[str, Any]:
    """Of both ways; ratios are taken within a round, the straightforward one's to ours."""
    figures: dict[str, Any] = {
        way: {
            "step_ms": spread([statistics.median(turns[way].ms) for turns in rounds]),
            "parts_ms": {part: spread([turns[way].parts_ms[part] for turns in rounds]) for part in PARTS},
            "grown_mib": spread([turns[way].grown_mib for turns in rounds]),
        }
        for way in WAYS
    }
    pairs = [(turns["straightforward"], turns["ours"]) for turns in rounds]
    figures["ratio"] = {
        "time": spread([sum(theirs.ms) / sum(ours.ms) for theirs, ours in pairs]),
        "memory": spread([theirs.grown_mib / ours.grown_mib for theirs, ours in pairs]),
        "parts": {
            part: spread([theirs.parts_ms[part] / ours.parts_ms[part] for theirs, ours in pairs]) for part in PARTS
        },
    }
    figures["losses"] = {way: [turns[way].losses for turns in rounds] for way in WAYS}
    return figures


def _table(figures: dict[str, Any]) -> Table:
    def row(name: str, part: dict[str, dict[str, float]], ratio: dict[str, float], shape: str) -> list[str]:
        least_to_most = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
        return [name, *(format(part[way]["median"], shape) for way in WAYS), f"{ratio['median']:.2f}", least_to_most]

    ratio = figures["ratio"]
    rows = [row("step, ms", {way: figures[way]["step_ms"] for way in WAYS}, ratio["time"], ".0f")]
    for part in PARTS:
        of_ways = {way: figures[way]["parts_ms"][part] for way in WAYS}
        rows.append(row(f"of it {part.replace('_', ' ')}, ms", of_ways, ratio["parts"][part], ".0f"))
    grown = {way: figures[way]["grown_mib"] for way in WAYS}
    rows.append(row("memory of the steps, MiB", grown, ratio["memory"], ".0f"))
    return Table("a step", ["", *WAYS, "ratio", "least to most"], rows)


def _notes(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    return [
        f"Batches of {settings['batch_size']} trips on average, as the trainer orders them, built beforehand; "
        f"{settings['threads']} threads. A step is forward, loss, backward, clipping and AdamW.",
        f"Medians of {settings['rounds']} rounds; in each both have a fresh process, {settings['steps']} timed steps "
        f"after {settings['warm']} others. Ratios are taken within a round.",
        "Encoder: roads and zones; its backward ends when its last parameter has its gradient. Rest: the trip encoder, "
        "the navigator, losses and the optimiser.",
        "Memory: the most that the process held during all steps beyond what it held before the first, gradients and "
        "the optimiser's moments included.",
        "Both learned the same: their losses agree.",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """One turn in this process; its `Turn` as JSON on stdout."""
    parser = argparse.ArgumentParser("benchmarks.step", description=main.__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(argv)
    size = QUICK if arguments.quick else FULL
    settings, device = size.settings(arguments.store, arguments.work), torch.device("cpu")
    session = Session(settings, Store(arguments.store), Runtime.of(settings.runtime, device))
    prepare = _our_steps if arguments.way == "ours" else _straightforward_steps
    plan = list(itertools.islice(session.schedule.from_step(0), size.warm + size.steps))
    model, steps = prepare(session, plan)
    print(json.dumps(dataclasses.asdict(_measure(model, steps, size.warm))))
    return 0


def _measure(model: nn.Module, steps: Sequence[Step], warm: int) -> Turn:
    clock = EncoderClock(model.get_submodule("road_network_encoder"))
    taken, parts, losses = [], [], []
    before = meters.reset_peak_rss()
    for step in steps:
        start = time.perf_counter()
        losses.append(step())
        taken.append(1000 * (time.perf_counter() - start))
        forward, backward = (1000 * seconds for seconds in clock.take())
        parts.append(dict(zip(PARTS, (forward, backward, taken[-1] - forward - backward), strict=True)))
    medians = {part: statistics.median(step[part] for step in parts[warm:]) for part in PARTS}
    return Turn(taken[warm:], medians, (meters.peak_rss() - before) / MIB, losses)


def _our_steps(session: Session, plan: Sequence[PlannedStep]) -> tuple[nn.Module, list[Step]]:
    def make(planned: PlannedStep) -> Step:
        prepared = prepare_step(session.feed, session.model.graph, planned)

        def step() -> float:
            session.trainer.train_step(prepared)
            return session.trainer.take_metrics(0.0)["train/loss"]

        return step

    assert isinstance(session.model, HOSER)
    return session.model, [make(planned) for planned in plan]


def _straightforward_steps(session: Session, plan: Sequence[PlannedStep]) -> tuple[nn.Module, list[Step]]:
    settings, total = session.settings, session.schedule.total_steps
    network, trips = RoadNetwork.load(session.store), session.store.trips("train")
    assert isinstance(settings.model, ModelConfig)
    model = StraightforwardHOSER(settings.model, network)
    model.load_state_dict(session.model.state_dict())
    optimizer = build_optimizer(settings.optim, model)

    def make(planned: PlannedStep) -> Step:
        (index,) = planned.micro_batches
        batch = PaddedTensors.of(build_padded(network, trips, index, matrices_by_trip, settings.batch.candidate_top_k))

        def step() -> float:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(planned.number, total, settings.optim)
            optimizer.zero_grad(set_to_none=True)
            logits, times = model(batch)
            next_road, seconds = student.losses(logits, times, batch, session.scale)
            loss = next_road + settings.time_weight * seconds
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip_norm)
            optimizer.step()
            return loss.item()

        return step

    return model, [make(planned) for planned in plan]


if __name__ == "__main__":
    sys.exit(main())
