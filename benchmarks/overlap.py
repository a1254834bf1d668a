"""Section `overlap`: what a distilled step costs, and how much of the teacher's time it hides.

    vanilla       no teacher
    synchronous   the same batches built ahead, but the teacher asked inside the step, which waits for it
    overlapped    the trainer's own way: questions sent while batches are built ahead

The teacher sleeps (`remote.py`) and takes 0, half, 1, 1.5 and 2 times the vanilla step for an answer. It serves one
request at a time, as one accelerator does, so above 1 no trainer can hide it: the floor is its own pace. Teachers
that answer every request after that time however many are waiting are measured too.

Every arm has its turn right after a vanilla one over the same batches from the same weights, and is compared with
that. Distilling is more work (queries, KL) whatever the teacher takes: the arm at 0 shows how much.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import cities
from benchmarks.common import TORCH_THREADS, BenchmarkError, Options, Result, Table, rotated, spread, torch_threads
from benchmarks.remote import AskedWhenNeeded, SleepingTeacher
from shared.store import Store
from student_trainer.data.batch import build_batch
from student_trainer.data.loader import Prefetcher
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.query import build_query
from student_trainer.model.config import ModelConfig
from student_trainer.model.device import pick_device
from student_trainer.model.hoser import HOSER
from student_trainer.prepare.config import GridConfig
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, prepare_step
from student_trainer.train.session import Session

CITY, GRID = "sf_taxi_core", GridConfig()
HIDDEN = 0.05
"""An overlapped step may be this much longer than what it is compared with."""
PARTS = ("data_wait", "transfer", "forward", "teacher_wait", "loss", "backward", "optimizer")
"""Of a step, as the trainer's stopwatch names them."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        kind: vanilla, synchronous or overlapped.
        factor: the teacher's seconds for an answer, in vanilla steps.
        serial: whether the teacher serves one request at a time.
    """

    kind: str
    factor: float = 0.0
    serial: bool = True

    @property
    def name(self) -> str:
        """Its key in the figures."""
        if self.kind == "vanilla":
            return self.kind
        return f"{self.kind} {self.factor:g}" + ("" if self.serial else " parallel")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        factors: of the teacher that serves one request at a time.
        parallel_factors: of the teacher that serves any number at once.
        rounds: how often every arm has its turn.
        warm, steps: of a turn; the first are not counted.
    """

    factors: tuple[float, ...] = (0, 0.5, 1, 1.5, 2)
    parallel_factors: tuple[float, ...] = (1, 2)
    rounds: int = 4
    warm: int = 6
    steps: int = 10

    @property
    def arms(self) -> list[Arm]:
        """All but vanilla."""
        serial = [Arm(kind, factor) for factor in self.factors for kind in ("synchronous", "overlapped")]
        return serial + [Arm("overlapped", factor, serial=False) for factor in self.parallel_factors]


QUICK = Size(factors=(0, 1), parallel_factors=(), rounds=1, warm=1, steps=2)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What an arm's steps took.

    Attributes:
        step: milliseconds of a step.
        parts: of these, by part.
        loss: mean training loss.
    """

    step: float
    parts: dict[str, float]
    loss: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """An arm's turn, and vanilla's over the same batches just before."""

    vanilla: Turn
    arm: Turn

    @property
    def ratio(self) -> float:
        """The arm's step in vanilla steps."""
        return self.arm.step / self.vanilla.step


class Student:
    """A training session whose steps any arm can make."""

    def __init__(self, settings: TrainConfig, store: Store) -> None:
        self._device = pick_device(settings.runtime.device)
        self._session = Session(settings, store, Runtime.of(settings.runtime, self._device))
        self._settings, self.network, self.trips = settings, RoadNetwork.load(store), store.trips("train")
        self._model = copy.deepcopy(self._session.model.state_dict())
        head = self._session.trainer.head
        self._head = None if head is None else copy.deepcopy(head.state_dict())
        self._optimizer = copy.deepcopy(self._session.trainer.optimizer.state_dict())

    def plan(self, first: int, count: int) -> list[PlannedStep]:
        """Steps of the schedule."""
        return list(itertools.islice(self._session.schedule.from_step(first), count))

    def take_turn(self, arm: Arm, seconds: float, first: int, size: Size) -> Turn:
        """Trains from the initial weights, as `student_trainer.train.run` does.

        Args:
            arm: how.
            seconds: that the teacher takes for an answer.
            first: step of the schedule to begin with.
            size: how many steps.
        """
        trainer, lookahead = self._session.trainer, self._settings.client.lookahead
        assert isinstance(self._session.model, HOSER)
        self._session.model.load_state_dict(self._model)
        if trainer.head is not None:
            trainer.head.load_state_dict(self._head or {})
        trainer.optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        teacher = SleepingTeacher(seconds, arm.serial)
        asked = {"vanilla": None, "synchronous": AskedWhenNeeded(teacher), "overlapped": teacher}[arm.kind]
        feed = Feed(self.network, self.trips, self._settings, asked, self._device)
        plan = self.plan(first, size.warm + size.steps + lookahead + 1)  # batches are built ahead to the last step
        with Prefetcher(
            lambda planned: prepare_step(feed, self._session.model.graph, planned), plan, lookahead
        ) as steps:
            source = iter(steps)
            for number in range(size.warm + size.steps):
                if number == size.warm:
                    trainer.take_metrics(0.0)
                    start = time.perf_counter()
                waited = time.perf_counter()
                step = next(source)
                trainer.stopwatch.seconds["data_wait"] += time.perf_counter() - waited
                trainer.train_step(step)
            metrics = trainer.take_metrics(time.perf_counter() - start)
        teacher.close()
        parts = {part: metrics.get(f"perf/{part}_ms", 0.0) for part in PARTS}
        return Turn(metrics["perf/step_ms"], parts, metrics["train/loss"])


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the teacher's pace changed what was learned."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    settings = _train_settings(options, store)
    with torch_threads(TORCH_THREADS):
        student = Student(settings, store)
        rounds = [_round(student, size, number) for number in range(size.rounds)]
        ahead = _ahead_of_the_step(student, settings)
    figures = {
        "vanilla_step_ms": spread([pair.vanilla.step for pairs in rounds for pair in pairs.values()]),
        "arms": {arm.name: _figures(arm, rounds) for arm in size.arms},
        "parts_ms": _parts(rounds),
        "ahead_ms": ahead,
        "loss": {arm.name: [pairs[arm.name].arm.loss for pairs in rounds] for arm in size.arms},
    }
    _check_losses(rounds)
    measured = {
        **cities.facts(store),
        "threads": TORCH_THREADS,
        "train": settings.model_dump(mode="json", include={"model", "batch", "distill", "optim", "client"}),
        **dataclasses.asdict(size),
    }
    tables = [_arms_table(size, figures), _parts_table(figures)]
    return Result("overlap", "The teacher's time in a training step", measured, figures, tables, _notes(figures, size))


def _train_settings(options: Options, store: Store) -> TrainConfig:
    """With the KL to the teacher's own answer alone: arms share a student, and a vanilla one has no head."""
    return TrainConfig(
        data=store.path,
        teacher="sleeping:1",
        out=options.work / "run",
        model=ModelConfig(road_id_dim=32, road_attr_dim=8),
        distill=DistillConfig(weight=0.3, target="history", head=0, schedule="constant"),
    )


def _round(student: Student, size: Size, number: int) -> dict[str, Pair]:
    """Vanilla and each arm by turns, over the round's own batches."""
    first = number * size.steps
    if number == 0:
        student.take_turn(Arm("vanilla"), 0.0, first, size)
    pairs = {}
    for arm in rotated(size.arms, number):
        vanilla = student.take_turn(Arm("vanilla"), 0.0, first, size)
        turn = student.take_turn(arm, arm.factor * vanilla.step / 1000, first, size)
        pairs[arm.name] = Pair(vanilla, turn)
    return pairs


def _figures(arm: Arm, rounds: Sequence[dict[str, Pair]]) -> dict[str, Any]:
    """Medians over the rounds; ratios within a pair, and of the ratios within a round."""
    pairs, at_once = [[pairs[name] for pairs in rounds] for name in (arm.name, "overlapped 0")]
    to_vanilla = spread([pair.ratio for pair in pairs])
    to_distilled = spread([mine.ratio / zero.ratio for mine, zero in zip(pairs, at_once, strict=True)])
    return {
        "kind": arm.kind,
        "factor": arm.factor,
        "serial": arm.serial,
        "step_ms": spread([pair.arm.step for pair in pairs]),
        "ratio_to_vanilla": to_vanilla,
        "ratio_to_distilled_at_0": to_distilled,
        "teacher_wait_ms": spread([pair.arm.parts["teacher_wait"] for pair in pairs]),
        "teacher_wait_share": spread([pair.arm.parts["teacher_wait"] / pair.arm.step for pair in pairs]),
        "within_5_percent_of_vanilla": to_vanilla["median"] <= 1 + HIDDEN,
        "within_5_percent_of_distilled_at_0": to_distilled["median"] <= 1 + HIDDEN,
    }


def _parts(rounds: Sequence[dict[str, Pair]]) -> dict[str, dict[str, float]]:
    """Milliseconds of the parts of a step, vanilla and distilled at 0; `other` is what no part counts."""
    pairs = [pairs["overlapped 0"] for pairs in rounds]
    result = {}
    for name, turns in {"vanilla": [p.vanilla for p in pairs], "distilled at 0": [p.arm for p in pairs]}.items():
        parts = {part: statistics.median(turn.parts[part] for turn in turns) for part in PARTS}
        other = statistics.median(turn.step - sum(turn.parts.values()) for turn in turns)
        result[name] = parts | {"other": other, "step": statistics.median(turn.step for turn in turns)}
    return result


def _ahead_of_the_step(student: Student, settings: TrainConfig) -> dict[str, float]:
    """Milliseconds of what the prefetching thread does for a step, alone: what competes with the student's cores."""
    (index,) = student.plan(0, 1)[0].micro_batches
    batch = build_batch(student.network, student.trips, index, settings.batch.candidate_top_k)
    query = build_query(batch, student.network, settings.distill)
    teacher = SleepingTeacher(0.0, serial=True)
    result = {
        "build_batch": _milliseconds(
            lambda: build_batch(student.network, student.trips, index, settings.batch.candidate_top_k)
        ),
        "build_query": _milliseconds(lambda: build_query(batch, student.network, settings.distill)),
        "sleeping_teacher": _milliseconds(lambda: teacher.submit(query)),
    }
    teacher.close()
    return result


def _milliseconds(function: Callable[[], object], times: int = 10) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def _check_losses(rounds: Sequence[dict[str, Pair]]) -> None:
    """Raises `BenchmarkError` unless all distilled arms, and all vanilla turns, learned the same in a round."""
    for pairs in rounds:
        for losses in ([pair.arm.loss for pair in pairs.values()], [pair.vanilla.loss for pair in pairs.values()]):
            if max(losses) - min(losses) > 1e-6 * abs(max(losses)):
                raise BenchmarkError(f"the same steps from the same weights gave other losses: {sorted(set(losses))}")


def _arms_table(size: Size, figures: dict[str, Any]) -> Table:
    rows = [["vanilla", "", f"{figures['vanilla_step_ms']['median']:.0f}", "1", "", "", ""]]
    for arm in size.arms:
        found = figures["arms"][arm.name]
        ratio = found["ratio_to_vanilla"]
        rows.append(
            [
                arm.kind + ("" if arm.serial else ", parallel teacher"),
                f"{arm.factor:g}",
                f"{found['step_ms']['median']:.0f}",
                f"{ratio['median']:.3f}",
                f"{ratio['min']:.3f} to {ratio['max']:.3f}",
                f"{found['ratio_to_distilled_at_0']['median']:.3f}",
                f"{found['teacher_wait_ms']['median']:.1f}",
            ]
        )
    header = ["arm", "teacher, in vanilla steps", "step ms", "ratio to vanilla", "least to most"]
    return Table("steps", [*header, "ratio to distilled at 0", "waits for the teacher, ms"], rows)


def _parts_table(figures: dict[str, Any]) -> Table:
    parts = figures["parts_ms"]
    rows = [[name, *(f"{ms:.1f}" for ms in parts[name].values())] for name in parts]
    return Table("parts of a step, ms", ["step", *(name.replace("_", " ") for name in parts["vanilla"])], rows)


def _notes(figures: dict[str, Any], size: Size) -> list[str]:
    ahead, arms = figures["ahead_ms"], figures["arms"]
    judged = [arms[arm.name] for arm in size.arms if arm.kind == "overlapped" and arm.serial and arm.factor <= 1]
    vanilla, distilled = (
        ", ".join(f"{a['factor']:g}: {'yes' if a[f'within_5_percent_of_{base}'] else 'no'}" for a in judged)
        for base in ("vanilla", "distilled_at_0")
    )
    return [
        f"Overlapped, within 5 % of vanilla, by the teacher's time: {vanilla}; "
        f"within 5 % of distilled at 0: {distilled}.",
        f"Medians of {size.rounds} rounds of {size.steps} steps ({size.warm} before them not counted), every turn "
        "right after a vanilla one over the same batches; ratios are taken within such a pair.",
        "The teacher serves one request at a time and sleeps meanwhile, like an accelerator elsewhere; `parallel` "
        "serves any number at once. Its answers are even, which costs the KL as much as any other.",
        f"Beside the step, on the thread that builds batches ahead: batch {ahead['build_batch']:.2f} ms, query "
        f"{ahead['build_query']:.2f} ms, the sleeping teacher's answer {ahead['sleeping_teacher']:.3f} ms.",
        "All arms of a round learned the same: their losses agree.",
    ]
