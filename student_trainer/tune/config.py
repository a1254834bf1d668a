"""Settings of `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from shared.address import TeachersText
from shared.config import Section, Seed, split_commas
from student_trainer.train.config import RecipeConfig
from student_trainer.tune.space import SPACE, Point, Space, merged

PHASES = (0, 1, 2, 3)
"""Vanilla at the search's budget; the search; the best setting over seeds; vanilla over the same."""

Objective = Literal["accuracy", "nll", "accuracy+step_time"]


Integers = Annotated[tuple[int, ...], pydantic.BeforeValidator(split_commas)]
Seeds = Annotated[tuple[Seed, ...], pydantic.BeforeValidator(split_commas)]


class SamplerConfig(Section):
    """Who proposes settings."""

    name: Literal["cmaes", "tpe", "gp", "random", "grid"] = "cmaes"
    """CMA-ES, tree-structured Parzen estimator, Gaussian process, random, or every point of a grid."""
    seed: Seed = 0
    """Seed of the proposals; each depends on it, on the slot's number and on what had ended before."""
    population: int = pydantic.Field(0, ge=0)
    """Trials in a generation of CMA-ES; 0: what is usual for the number of parameters, or fewer so that several
    generations fit."""


class PrunerConfig(Section):
    """Who ends trials early."""

    name: Literal["hyperband", "median", "none"] = "hyperband"
    """Hyperband (successive halving in brackets), below the median of the others, or nobody."""
    min_epochs: int = pydantic.Field(2, ge=1)
    """Epochs that every trial gets."""
    reduction: int = pydantic.Field(3, ge=2)
    """Hyperband: of so many trials one goes on, and with so many times the epochs."""
    startup: int = pydantic.Field(4, ge=1)
    """Median: trials that end before any is judged."""


class StorageConfig(Section):
    """Where the study is."""

    url: str = ""
    """sqlite:///FILE, postgresql+psycopg://..., journal:FILE or grpc://HOST:PORT of Optuna's proxy; FILE is taken as it
    is, but for $NAME and ${NAME}, which stand for variables of the environment, for passwords, and $$, a dollar sign.
    Empty: SQLite in OUT."""
    heartbeat_seconds: float = pydantic.Field(10, gt=0)
    """How often a running trial shows that it is alive."""
    stale_seconds: float = pydantic.Field(120, gt=0)
    """How long without a sign of life, as seen here, before a trial of another machine counts as lost."""
    max_retries: int = pydantic.Field(2, ge=0)
    """Further attempts at a slot whose worker was lost."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> StorageConfig:
        if self.stale_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("stale_seconds must be at least three heartbeats")
        return self


class FinalConfig(Section):
    """Phases 2 and 3."""

    epochs: int = pydantic.Field(25, ge=1)
    """Epochs of each run."""
    seeds: Seeds = (42, 43, 44)
    """A run each, with and without the teacher."""
    train_trips: int | None = pydantic.Field(None, ge=0)
    """Instead of train.batch.train_trips; 0 for all."""
    split: Literal["test", "val"] = "test"
    """Where the arms are compared: val is what the search has chosen by."""
    significance: float = pydantic.Field(0.05, gt=0, lt=1)
    """Largest p-value of a difference that is called real."""
    draws: int = pydantic.Field(10_000, ge=100)
    """Draws of the bootstrap over seeds, where not all can be enumerated."""
    confidence: float = pydantic.Field(0.95, gt=0, lt=1)
    """Of its intervals."""


class TuneConfig(Section):
    """A study."""

    data: Path
    """Store that `prepare` wrote."""
    teacher: TeachersText = "none"
    """As for `train`; only phases 0 and 3 can do without."""
    out: Path
    """Directory to write: optuna_trials/, optuna_results/."""
    study: str = pydantic.Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    """Its name."""
    skip: Integers = ()
    """Phases to leave out, separated by commas: 0 vanilla at the search's budget, 1 search, 2 best setting over
    seeds, 3 vanilla over the same seeds."""
    dry_run: bool = False
    """Print what would happen, and end."""
    trials: int = pydantic.Field(24, ge=1)
    """Trials of the search, pruned and failed ones included. A study that is there can get more."""
    epochs: int = pydantic.Field(8, ge=1)
    """Epochs of a trial that is not pruned."""
    seeds: Seeds = (0,)
    """Seeds of every trial: trained in step, and the objective is their mean."""
    objective: Objective = "accuracy"
    """Of validation, highest accuracy or lowest negative log-likelihood of any epoch; or the accuracy and
    milliseconds of a training step, two objectives with a Pareto front."""
    workers: int = pydantic.Field(1, ge=1)
    """Processes here; the same command on other machines adds theirs, if the storage is shared."""
    max_failures: int = pydantic.Field(3, ge=0)
    """Trials of the search that may fail by an error of their own before it stops."""
    space: Space = SPACE
    """Settings to search, as SETTING.low, high, log, step, or choices; SETTING=null takes one out. Given values are
    laid over the default."""
    points: tuple[Point, ...] | None = None
    """Settings to try first; none given: those we recommend, as far as they lie within the space."""
    sampler: SamplerConfig = SamplerConfig()
    """Proposals."""
    pruner: PrunerConfig = PrunerConfig()
    """Early ends."""
    storage: StorageConfig = StorageConfig()
    """Storage."""
    final: FinalConfig = FinalConfig()
    """Final runs."""
    train: RecipeConfig = RecipeConfig()
    """What all runs share, as for `train`."""

    _merge_space = pydantic.field_validator("space", mode="before")(merged)

    @pydantic.field_serializer("space")
    def _with_removed(self, space: Space) -> dict[str, Any]:
        """What is laid over the default again when it is read: what has been taken out is null."""
        removed = dict.fromkeys(name for name in SPACE if name not in space)
        return {name: parameter.model_dump(mode="json") for name, parameter in space.items()} | removed

    @pydantic.model_validator(mode="after")
    def _check(self) -> TuneConfig:
        for name, seeds in (("seeds", self.seeds), ("final.seeds", self.final.seeds)):
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"{name}: give at least one, each once")
        if unknown := sorted(set(self.skip) - set(PHASES)):
            raise ValueError(f"skip: there is no phase {unknown[0]}; phases are 0, 1, 2, 3")
        if not self.phases:
            raise ValueError("skip: all phases are left out; leave one in")
        return self

    @property
    def phases(self) -> tuple[int, ...]:
        """Those that are not left out."""
        return tuple(phase for phase in PHASES if phase not in self.skip)
