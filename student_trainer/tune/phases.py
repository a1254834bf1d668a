"""The four phases: which study each is, what its slots train, where its trials are kept.

OUT/optuna_trials/trial_NNN_{vanilla,distilled}_{running,complete,pruned,failed}/   phases 0 and 1
OUT/optuna_trials/final_seedNN_{vanilla,distilled}_{...}/                           phases 2 and 3
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from shared import claims, files
from shared.errors import ConfigError
from shared.lock import Held
from shared.store import Store
from student_trainer.train.config import RecipeConfig
from student_trainer.tune import samplers, space
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.plan import Plan
from student_trainer.tune.slots import Again, AnyTrial, Direction, Slots, open_study
from student_trainer.tune.space import Point
from student_trainer.tune.trial import Task

log = logging.getLogger(__name__)

Arm = Literal["vanilla", "distilled"]

ARMS: dict[int, Arm] = {0: "vanilla", 1: "distilled", 2: "distilled", 3: "vanilla"}
SUFFIXES = {0: "-vanilla", 1: "", 2: "-final-distilled", 3: "-final-vanilla"}
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
RUNNING = "running"
POPULATION = "population"
"""User attribute of a search."""

UNDECIDED = {"client", "log", "runtime"}
"""Sections of a recipe that decide nothing that is compared."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of a study.

    Attributes:
        slots: of its study.
        fixed: what each slot must have; None for what the sampler proposes.
        point: values of phases 2 and 3.
    """

    number: int
    settings: TuneConfig
    plan: Plan
    slots: Slots
    fixed: tuple[Point | None, ...]
    point: Point

    @property
    def arm(self) -> Arm:
        """With or without the teacher."""
        return ARMS[self.number]

    @property
    def is_final(self) -> bool:
        """Whether each slot is a seed."""
        return self.number >= 2

    def make_sampler(self, slot: int) -> optuna.samplers.BaseSampler:
        """Of a slot's values."""
        prunes = self.settings.pruner.name != "none"
        return samplers.make_sampler(self.settings.sampler, self.population, slot, prunes)

    def mend(self, again: Again = "no") -> None:
        """Finds attempts that are lost and makes what slots lack; see `Slots.fill`."""
        self.slots.reap()
        self.slots.fill(self.fixed, again)

    @property
    def population(self) -> int:
        """Trials in a generation of CMA-ES: what was decided when the study was made."""
        return int(self.slots.study.user_attrs.get(POPULATION, 0))

    def task(self, trial: optuna.Trial) -> Task:
        """What a claimed trial trains."""
        settings = self.settings
        point = space.suggest(trial, settings.space) if self.number == 1 else self.point
        recipe = final_recipe(settings, point) if self.is_final else space.apply(settings.train, point)
        return Task(
            data=settings.data,
            teacher=settings.teacher if self.arm == "distilled" else "none",
            recipe=recipe,
            epochs=settings.final.epochs if self.is_final else settings.epochs,
            seeds=(settings.final.seeds[trial.user_attrs["slot"]],) if self.is_final else settings.seeds,
            objective=settings.objective,
            group=settings.study,
            name=self.name(trial),
        )

    def name(self, trial: AnyTrial) -> str:
        """A trial's name, without its state."""
        if self.is_final:
            return f"final_seed{self.settings.final.seeds[trial.user_attrs['slot']]}_{self.arm}"
        return f"trial_{trial.number:03d}_{self.arm}"

    def folder(self, trial: AnyTrial, state: str) -> Path:
        """Where a trial is kept."""
        return self.settings.out / "optuna_trials" / f"{self.name(trial)}_{state}"

    def find(self, trial: FrozenTrial) -> Path | None:
        """Where an ended trial is, if it is on this machine."""
        found = self.folder(trial, STATES[trial.state])
        return found if found.is_dir() else None


def open_phase(number: int, plan: Plan, storage: BaseStorage, revision: str) -> Phase:
    """A phase of a study that may be there already.

    Raises:
        ConfigError: it is there with other settings.
    """
    settings = plan.settings
    point = best_point(settings, storage) if number >= 2 else {}
    study = open_study(
        storage,
        settings.study + SUFFIXES[number],
        _directions(settings)[: None if number == 1 else 1],
        _about(number, settings, revision, point),
        samplers.make_pruner(settings.pruner, settings.epochs) if number == 1 else optuna.pruners.NopPruner(),
    )
    if number == 1 and POPULATION not in study.user_attrs:
        study.set_user_attr(POPULATION, plan.population)
    fixed = _fixed(number, plan)
    slots = Slots(study, storage, settings.storage, settings.out / "optuna.lock")
    if (known := slots.count) > len(fixed):
        raise ConfigError(f"study {study.study_name} has {known} slots already; {len(fixed)} are fewer")
    return Phase(number, settings, plan, slots, fixed, point)


def _fixed(number: int, plan: Plan) -> tuple[Point | None, ...]:
    settings = plan.settings
    if number == 1:
        return plan.points + (None,) * (settings.trials - len(plan.points))
    return (None,) * (1 if number == 0 else len(settings.final.seeds))


def _about(number: int, settings: TuneConfig, revision: str, point: Point) -> dict[str, Any]:
    """What must not change while a study is under way."""
    recipe = settings.train.model_dump(mode="json", exclude=UNDECIDED)
    store = Store(settings.data).fingerprint
    about: dict[str, Any] = {"train": recipe, "store": store, "objective": settings.objective}
    if ARMS[number] == "distilled":
        about["teacher_revision"] = revision
    if number >= 2:
        final = settings.final
        about |= final.model_dump(mode="json", include={"seeds", "epochs", "train_trips", "split"})
        return about | {"point": point}
    about |= {"seeds": list(settings.seeds), "epochs": settings.epochs}
    if number == 1:
        about |= settings.model_dump(mode="json", include={"space", "points", "sampler", "pruner"})
    return about


def _directions(settings: TuneConfig) -> list[Direction]:
    if settings.objective == "accuracy+step_time":
        return ["maximize", "minimize"]
    return ["minimize" if settings.objective == "nll" else "maximize"]


def final_recipe(settings: TuneConfig, point: Point) -> RecipeConfig:
    """What final runs train."""
    values = {**point, "optim.epochs": settings.final.epochs}
    if settings.final.train_trips is not None:
        values["batch.train_trips"] = settings.final.train_trips
    return space.apply(settings.train, values)


def best_point(settings: TuneConfig, storage: BaseStorage) -> Point:
    """The values of the search's best trial; none if there was no search.

    Raises:
        ConfigError: there was one, and no trial of it was completed.
    """
    names = optuna.get_all_study_names(storage)
    if settings.study not in names:
        return {}
    study = optuna.load_study(study_name=settings.study, storage=storage)
    trial = best_trial(study)
    if trial is None:
        raise ConfigError(f"study {settings.study} has no completed trial to take the best setting of")
    return dict(trial.params)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The completed trial with the best first objective, the earliest of equals."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
    return min(completed, key=lambda trial: (sign * trial.values[0], trial.number), default=None)


def adopt(phase: Phase, trial: optuna.Trial) -> Path:
    """The folder of a claimed trial; what an earlier attempt at its slot has left here is gone on with.

    Not if somebody trains there still: a worker that was taken for lost, for it was stopped for a while.
    """
    folder = phase.folder(trial, RUNNING)
    before = trial.user_attrs.get("retry_of")
    if before is not None and not phase.is_final:
        earlier = next(t for t in phase.slots.study.get_trials(deepcopy=False) if t.number == before)
        left = phase.folder(earlier, RUNNING)
        if (held := in_use(left)) is not None:
            log.warning("%s is %s, which was taken for lost; trial %d begins anew", left, held, trial.number)
        elif left.is_dir() and not folder.exists():
            left.rename(folder)
            record_failure(phase, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_use(folder: Path) -> Held | None:
    """Who trains in a trial's folder, if anybody does."""
    return next((held for run in sorted(folder.glob("seed*")) if (held := claims.holder(run))), None)


def keep(phase: Phase, trial: AnyTrial, state: TrialState, note: dict[str, Any]) -> None:
    """Leaves a trial's folder under its final name, with a note of what came of it."""
    folder, target = phase.folder(trial, RUNNING), phase.folder(trial, STATES[state])
    files.write_json(folder / "trial.json", {**note, "state": STATES[state]})
    if target.exists():  # of an attempt that failed before
        shutil.rmtree(target)
    folder.rename(target)


def tidy(phase: Phase) -> None:
    """Gives folders their final names whose process was killed before it did, or whose slot others have filled."""
    newest = phase.slots.ended()
    filled = {trial.user_attrs["slot"] for trial in newest}
    attempts = newest if phase.is_final else phase.slots.study.get_trials(deepcopy=False)  # final ones share a folder
    for trial in attempts:
        is_over = trial.state.is_finished() and trial.user_attrs["slot"] in filled
        if is_over and phase.folder(trial, RUNNING).is_dir():
            attrs = trial.user_attrs
            note = {"number": trial.number, "slot": attrs["slot"], "params": trial.params, "error": attrs.get("error")}
            keep(phase, trial, trial.state, note | attrs.get("result", {}))


def record_failure(phase: Phase, trial: FrozenTrial) -> None:
    """Leaves word of an attempt whose work another one goes on with."""
    note = {"number": trial.number, "slot": trial.user_attrs["slot"], "state": "failed", "params": trial.params}
    files.write_json(phase.folder(trial, "failed") / "trial.json", note | {"error": trial.user_attrs["error"]})
