"""The four phases: which study each is, and what its slots train."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from shared.errors import ConfigError
from shared.store import Store
from student_trainer.train.config import RecipeConfig
from student_trainer.train.trips import open_trips
from student_trainer.tune import samplers, space
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.plan import Plan
from student_trainer.tune.slots import Again, AnyTrial, Direction, Slots, open_study
from student_trainer.tune.space import Point
from student_trainer.tune.trial import Task

Arm = Literal["vanilla", "distilled"]

ARMS: dict[int, Arm] = {0: "vanilla", 1: "distilled", 2: "distilled", 3: "vanilla"}
SUFFIXES = {0: "-vanilla", 1: "", 2: "-final-distilled", 3: "-final-vanilla"}
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
"""What people read."""
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

    def reap_and_refill(self, again: Again = "no") -> None:
        """Declares attempts lost whose process is gone, and makes what slots lack; see `Slots.fill`."""
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
        if self.arm == "vanilla":
            recipe = labels_alone(recipe, Store(settings.data))
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


def open_phase(number: int, plan: Plan, storage: BaseStorage, revision: str | None) -> Phase:
    """A phase of a study that may be there already.

    Args:
        revision: of the teacher's weights; None if it is not known, where nothing is trained.

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


def _about(number: int, settings: TuneConfig, revision: str | None, point: Point) -> dict[str, Any]:
    """What must not change while a study is under way."""
    recipe = settings.train.model_dump(mode="json", exclude=UNDECIDED)
    store = Store(settings.data).fingerprint
    about: dict[str, Any] = {"train": recipe, "store": store, "objective": settings.objective}
    if ARMS[number] == "distilled" and revision is not None:
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


def labels_alone(recipe: RecipeConfig, store: Store) -> RecipeConfig:
    """The recipe of a student without a teacher, whom sampled trips, which have no labels, teach nothing.

    It makes as many steps as with them: an epoch has about as many trips, all of them labelled.

    Raises:
        ConfigError, CompatibilityError, FileFormatError: the trips cannot be opened; see `open_trips`.
    """
    if recipe.batch.sampled is None:
        return recipe
    trips = open_trips(store, recipe)
    passes = max(round(len(trips.epoch(0)) / len(trips.labelled)), 1)
    unsampled = {"sampled": None, "sampled_trips": 0, "sampled_share": 0.0, "labelled_passes": passes}
    untaught = {"sampled_labels": 0.0, "sampled_weight": None}
    return recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update=unsampled),
            "distill": recipe.distill.model_copy(update=untaught),
        }
    )


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
