"""One trial: training runs of several seeds in step, their mean reported after every epoch.

TRIAL/seed<seed>/   the run, as `train` leaves it
TRIAL/trial.json    what was tried and what came of it
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from shared import claims
from shared.errors import TrainingError
from shared.store import SplitName, Store
from shared.training import logbook
from shared.training.states import random_state, set_random_state
from shared.training.stop import StopSignals
from shared.wire import ScoreQuery, ScoreReply
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.teacher import Teacher
from student_trainer.evaluate import headroom, next_road
from student_trainer.model.device import pick_device, use_threads
from student_trainer.model.weights import load_model
from student_trainer.predict.config import CutConfig
from student_trainer.predict.positions import predict
from student_trainer.runs.layout import RunFiles
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.train.connect import connect
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session
from student_trainer.tune.config import Objective

Values = tuple[float, ...]
"""One for each objective."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a trial trains.

    Attributes:
        recipe: with the trial's values in it.
        epochs: of each seed.
        group, name: for Weights & Biases.
    """

    data: Path
    teacher: str
    recipe: RecipeConfig
    epochs: int
    seeds: tuple[int, ...]
    objective: Objective
    group: str
    name: str

    def settings(self, out: Path, seed: int) -> TrainConfig:
        """Of one seed's run, which goes on if it is there."""
        recipe = self.recipe
        log = recipe.log.model_copy(
            update={
                "wandb_group": recipe.log.wandb_group or self.group,
                "wandb_name": f"{self.name}-seed{seed}",
                "progress": False,
                "prometheus": "off",  # workers would want the same port
            }
        )
        sections: dict[str, Any] = {name: getattr(recipe, name) for name in RecipeConfig.model_fields}
        sections |= {"log": log, "optim": recipe.optim.model_copy(update={"epochs": self.epochs})}
        return TrainConfig(data=self.data, teacher=self.teacher, out=out, resume=True, seed=seed, **sections)


class CountedTeacher:
    """A teacher whose work is counted.

    Attributes:
        compute_seconds: of the model, for the positions that it had not remembered. A batch that is shared with other
            trainers is counted by each.
        positions: asked for.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.revision, self.failure_stats = teacher, teacher.revision, teacher.failure_stats
        self.compute_seconds, self.positions = 0.0, 0

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        self.positions += query.positions
        future = self._teacher.submit(query)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[ScoreReply]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.compute_seconds += future.result().compute_us / 1e6

    def close(self) -> None:
        """See `Teacher`."""
        self._teacher.close()


def train(task: Task, folder: Path, report: Callable[[int, Values], bool]) -> dict[str, Any]:
    """Trains all seeds in step, going on where an earlier attempt in the same folder stopped.

    Args:
        report: told the epoch, from 1, and the values so far; True to stop.

    Returns:
        What came of it, as JSON: `values`, `epochs` done, `pruned`, each seed's history and what its teacher could
        still teach it, seconds, the teacher's share.

    Raises:
        KeyboardInterrupt: told to stop; the folder can be gone on with.
        TeacherError, CompatibilityError: the teacher's fault rather than the trial's.
        Exception: whatever else ends a training run.
    """
    start = time.monotonic()
    store = Store(task.data)
    runs = [task.settings(folder / f"seed{seed}", seed) for seed in task.seeds]
    use_threads(runs[0].runtime.threads)
    device = pick_device(runs[0].runtime.device, setting="runtime.device")
    teacher = CountedTeacher(connect(runs[0], store))
    with contextlib.closing(teacher), StopSignals() as stop, contextlib.ExitStack() as claimed:
        for settings in runs:
            claimed.enter_context(claims.directory(settings.out))
        sessions = [
            Session(
                settings,
                store,
                Runtime.of(settings.runtime, device, stop=stop),
                teacher,
                find_checkpoint(settings, store),
            )
            for settings in runs
        ]
        left: dict[str, dict[str, float] | None] = {}
        values, epoch, pruned = _train_in_step(task, sessions, stop, report)
        if not pruned:
            for session in sessions:
                summary = session.write_summary(time.monotonic() - start)
                left[str(session.settings.seed)] = summary["headroom"] and headroom.left(summary["headroom"])
    histories = {
        str(session.settings.seed): {
            "history": session.progress.history[:epoch],
            "bad_steps": session.progress.bad_steps,
        }
        for session in sessions
    }
    return {
        "values": list(values),
        "epochs": epoch,
        "pruned": pruned,
        "runs": histories,
        "headroom": left,
        "seconds": round(time.monotonic() - start, 3),
        "teacher_seconds": round(teacher.compute_seconds, 3),
        "teacher_positions": teacher.positions,
        "teacher_revision": teacher.revision or None,
    }


def _train_in_step(
    task: Task, sessions: Sequence[Session], stop: StopSignals, report: Callable[[int, Values], bool]
) -> tuple[Values, int, bool]:
    """Trains an epoch of each session in turn; the values, the epochs done, and whether it was pruned."""
    values: Values = ()
    epoch = 0
    with contextlib.ExitStack() as opened:
        loops = [opened.enter_context(contextlib.closing(_with_own_numbers(session))) for session in sessions]
        for epoch in range(1, task.epochs + 1):
            for session, loop in zip(sessions, loops, strict=True):
                if len(session.progress.history) < epoch:
                    next(loop)
            values = values_so_far(task.objective, sessions, epoch)
            if report(epoch, values) and epoch < task.epochs:
                return values, epoch, True
            if stop.requested:
                raise KeyboardInterrupt
        for loop in loops:
            for _ in loop:  # writes what is left to write at the end
                raise TrainingError("a run went on after its last epoch")
    return values, epoch, False


def _with_own_numbers(session: Session) -> Generator[dict[str, float]]:
    """A session's epochs, whose random numbers do not depend on the sessions beside it."""
    epochs, state = session.epochs(), session.random_state
    try:
        while True:
            set_random_state(state, session.runtime.device)
            try:
                record = next(epochs)
            except StopIteration:
                return
            finally:
                state = random_state(session.runtime.device)
            yield record
    finally:
        epochs.close()


def values_so_far(objective: Objective, sessions: Sequence[Session], epoch: int) -> Values:
    """Means over seeds of the best epoch so far, which is the one whose weights a run keeps.

    Raises:
        TrainingError: a value is not finite.
    """
    histories = [session.progress.history[:epoch] for session in sessions]
    best = [max(history, key=lambda record: record["accuracy"]) for history in histories]
    key = "nll" if objective == "nll" else "accuracy"
    value = float(np.mean([record[key] for record in best]))
    values: Values = (value,)
    if objective == "accuracy+step_time":
        values += (float(np.mean([step_milliseconds(session.settings.out) for session in sessions])),)
    if not np.isfinite(values).all():
        raise TrainingError(f"the {objective} after epoch {epoch} is not finite")
    return values


def step_milliseconds(run: Path) -> float:
    """Median of the step times that a run has recorded."""
    times = [record["perf/step_ms"] for record in logbook.read(RunFiles(run).metrics) if "perf/step_ms" in record]
    return float(np.median(times))


def measure(task: Task, folder: Path, split: SplitName) -> dict[str, dict[str, float]]:
    """Each seed's best weights on all trips of a split: accuracy, and negative log-likelihood in nats."""
    found = {}
    store = Store(task.data)
    network = RoadNetwork.load(store)
    trips = store.trips(split, task.recipe.batch.cache)
    for seed in task.seeds:
        weights = RunFiles(folder / f"seed{seed}").best
        model, scale = load_model(weights, store)
        device = pick_device(task.recipe.runtime.device, setting="runtime.device")
        batch = task.recipe.batch
        cut = CutConfig(candidate_top_k=batch.candidate_top_k, max_steps=batch.max_steps)
        arrays = predict(model.to(device), network, trips, scale, cut, device)
        positions = next_road.positions_of(arrays, trips)
        found[str(seed)] = {
            "accuracy": float(positions.is_hit.mean()),
            "nll": float(np.nanmean(positions.nll_nats)),
            "positions": len(positions.is_hit),
        }
    return found
