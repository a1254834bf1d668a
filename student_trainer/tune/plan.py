"""What a study will do: refused if it cannot work, and told before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from shared import answers_file
from shared.errors import ConfigError
from shared.store import Store
from student_trainer.compare.over_seeds import smallest_p
from student_trainer.tune import samplers, space
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.effects import without_effect
from student_trainer.tune.space import Point

FEWEST_GENERATIONS = 2
"""Of CMA-ES: the first is drawn from the middle of the space, only the second from what was learned."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study that can work.

    Attributes:
        points: settings of the first slots; all of them for a grid.
        population: trials in a generation of CMA-ES, 0 for other samplers.
        generations: how many the budget completes.
        brackets: of Hyperband, the epochs after which each judges.
        epochs: trained by each phase, at most; of the search about `expected`.
    """

    settings: TuneConfig
    points: tuple[Point, ...]
    population: int
    generations: int
    brackets: list[list[int]]
    epochs: dict[int, int]
    expected: int

    def lines(self, seconds_per_epoch: float | None) -> Iterator[str]:
        """For people; the cost in time if it is known how long an epoch of one seed takes."""
        settings, final = self.settings, self.settings.final
        yield f"study {settings.study}: objective {settings.objective}, seeds {_list(settings.seeds)} in every trial"
        for name, parameter in settings.space.items():
            yield f"  {name:<24} {parameter.describe()}"
        told = {
            0: f"vanilla, {settings.epochs} epochs",
            1: f"search: {settings.trials} trials of at most {settings.epochs} epochs, {settings.workers} workers here",
            2: f"best setting, {final.epochs} epochs, seeds {_list(final.seeds)}",
            3: f"vanilla, {final.epochs} epochs, seeds {_list(final.seeds)}",
        }
        for phase in settings.phases:
            cost = f"at most {self.epochs[phase]} epochs of training"
            if phase == 1 and self.expected < self.epochs[1]:
                cost += f", about {self.expected}"
            if seconds_per_epoch is not None:
                cost += f", about {self.duration(phase, seconds_per_epoch)}"
            yield f"phase {phase}: {told[phase]} ({cost})"
            if phase == 1:
                yield from self._search()
        if {2, 3} <= set(settings.phases):
            yield from self._verdict()

    def duration(self, phase: int, seconds_per_epoch: float) -> str:
        """How long a whole phase takes about, for people, with this machine's workers."""
        seeds = len(self.settings.final.seeds)
        slots = {0: 1, 1: self.settings.trials, 2: seeds, 3: seeds}[phase]
        epochs = self.expected if phase == 1 else self.epochs[phase]
        return _duration(epochs * seconds_per_epoch / min(self.settings.workers, slots))

    def _search(self) -> Iterator[str]:
        settings = self.settings
        yield f"  {settings.sampler.name}: {len(self.points)} given settings first"
        if self.population:
            yield f"  generations of {self.population} trials: the budget completes {self.generations}"
        for number, rungs in enumerate(self.brackets):
            judged = f"judged after {_list(rungs)} epochs" if rungs else "not pruned"
            yield f"  hyperband bracket {number}: {judged}"
        if settings.pruner.name == "median":
            pruner = settings.pruner
            yield f"  median: after {pruner.min_epochs} epochs of a trial, from the trial {pruner.startup + 1} on"

    def _verdict(self) -> Iterator[str]:
        final = self.settings.final
        smallest = smallest_p(len(final.seeds))
        if smallest > final.significance:
            yield (
                f"note: {len(final.seeds)} seeds cannot show that a difference is real (the smallest exact p-value is "
                f"{smallest:.2g}, above {final.significance:g}); {_seeds_for(final.significance)} seeds can"
            )
        if shared := sorted(set(final.seeds) & set(self.settings.seeds)):
            yield f"note: the setting is chosen on seed {_list(shared)}, too: its final runs are flattered"
        if final.split == "val":
            yield "note: final.split=val is what the setting is chosen by: the comparison is flattered"
        if self.settings.train.batch.sampled is not None:
            yield "note: vanilla makes as many steps as the distilled student, all on labelled trips"
        if tuned := [name for name in self.settings.space if not name.startswith("distill.")]:
            yield f"note: vanilla gets the {_list(tuned)} that is best for the distilled student"


def check(settings: TuneConfig) -> None:
    """Refuses before the trainer is imported.

    Raises:
        ConfigError: the study cannot work.
        FileFormatError: there is no store, or no answers file where the teacher should be one.
    """
    make(settings)
    Store(settings.data)
    answers_file.check_address(settings.teacher)


def make(settings: TuneConfig) -> Plan:
    """Checks that a study can work.

    Raises:
        ConfigError: saying why it cannot, all that is wrong at once, and what would.
    """
    problems = _Problems(space.problems(settings.space, settings.train))
    if settings.teacher == "none" and {1, 2} & set(settings.phases):
        problems.append("phases 1 and 2 need a --teacher; leave them out with --skip 1,2")
    if len(settings.final.seeds) < 2 and {2, 3} <= set(settings.phases):
        problems.append("final.seeds: a single seed says nothing about chance; give at least two")
    points, size, generations, brackets = _search(settings, problems) if 1 in settings.phases else ((), 0, 0, [])
    problems.refuse()
    problems += without_effect(settings)
    problems.refuse()
    final = settings.final.epochs * len(settings.final.seeds)
    each = settings.epochs * len(settings.seeds)
    return Plan(
        settings=settings,
        points=points,
        population=size,
        generations=generations,
        brackets=brackets,
        epochs={0: each, 1: each * settings.trials, 2: final, 3: final},
        expected=round(settings.trials * len(settings.seeds) * _expected_epochs(settings, brackets)),
    )


class _Problems(list[str]):
    """All that makes a study impossible: who mends one should not meet the next."""

    def refuse(self) -> None:
        """Raises `ConfigError` if there are any."""
        if len(self) == 1:
            raise ConfigError(self[0])
        if self:
            lines = [f"{len(self)} reasons why this study cannot work:", *(f"  {problem}" for problem in self)]
            raise ConfigError("\n".join(lines))


def _search(settings: TuneConfig, problems: _Problems) -> tuple[tuple[Point, ...], int, int, list[list[int]]]:
    if not settings.space:
        problems.append("space: nothing is searched; leave phase 1 out with --skip 1")
        return (), 0, 0, []
    problems += _of_objective(settings)
    brackets = _brackets(settings, problems)
    points = _points(settings, problems)
    fits = len(points) <= settings.trials
    if not fits:
        problems.append(f"trials={settings.trials} is less than the {len(points)} points tried first (points=[]: none)")
    if settings.sampler.name != "cmaes":
        return points, 0, 0, brackets
    unordered = [name for name, parameter in settings.space.items() if parameter.choices is not None]
    if unordered:
        problems.append(f"sampler cmaes cannot search {', '.join(unordered)}, which has no order; use sampler.name=tpe")
    if unordered or not fits:
        return points, 0, 0, brackets
    return points, *_generations(settings, len(points), problems), brackets


def _generations(settings: TuneConfig, points: int, problems: _Problems) -> tuple[int, int]:
    """Trials in a generation of CMA-ES, and how many of them the budget completes."""
    size = samplers.population(settings)
    free = settings.trials - max(points, settings.workers)
    # while a generation's last trials run, the other workers already draw surplus ones
    generations = max(0, free + settings.workers - 1) // (size + settings.workers - 1)
    if generations < FEWEST_GENERATIONS:
        needed = settings.trials - free + FEWEST_GENERATIONS * (size + settings.workers - 1) - settings.workers + 1
        problems.append(
            f"sampler cmaes completes {generations} generations of {size} with trials={settings.trials}, "
            f"{points} points and {settings.workers} workers, and would be a random search; "
            f"give trials={needed} or more, a smaller sampler.population, or sampler.name=tpe"
        )
    return size, generations


def _points(settings: TuneConfig, problems: _Problems) -> tuple[Point, ...]:
    if settings.sampler.name == "grid":
        if settings.points:
            problems.append("points: a grid has its own")
        try:
            points = space.grid(settings.space)
        except ConfigError as error:
            problems.append(str(error))
            return ()
        if len(points) != settings.trials:
            problems.append(f"sampler grid has {len(points)} points; set trials={len(points)}")
        return tuple(points[: settings.trials])
    if settings.points is None:
        return space.recommended(settings.space)
    for point in settings.points:
        try:
            space.check_point(point, settings.space)
        except ConfigError as error:
            problems.append(str(error))
    return settings.points


def _of_objective(settings: TuneConfig) -> Iterator[str]:
    """What is wrong with the objective."""
    if settings.objective == "accuracy+step_time":
        if settings.pruner.name != "none":
            yield "objective accuracy+step_time: trials of two objectives cannot be pruned; set pruner.name=none"
        if settings.sampler.name == "cmaes":
            yield "objective accuracy+step_time: cmaes has one objective; use sampler.name=tpe"


def _brackets(settings: TuneConfig, problems: _Problems) -> list[list[int]]:
    """Those of Hyperband."""
    pruner, epochs = settings.pruner, settings.epochs
    if pruner.name == "none":
        return []
    if pruner.min_epochs >= epochs:
        problems.append(
            f"pruner.min_epochs={pruner.min_epochs} leaves nothing to prune of epochs={epochs}; "
            "set pruner.name=none, or more epochs"
        )
        return []
    if pruner.name == "median":
        if pruner.startup >= settings.trials:
            problems.append(f"pruner.startup={pruner.startup} judges none of trials={settings.trials}")
        return []
    brackets = samplers.brackets(pruner, epochs)
    if len(brackets) < 2:
        problems.append(
            f"hyperband has a single bracket with min_epochs={pruner.min_epochs}, reduction={pruner.reduction} and "
            f"epochs={epochs}: give epochs={pruner.min_epochs * pruner.reduction} or more, or pruner.name=median"
        )
    return brackets


def _expected_epochs(settings: TuneConfig, brackets: list[list[int]]) -> float:
    """Epochs of a mean trial if of every `reduction` trials at a rung one goes on; Hyperband gives the bracket that
    prunes most the most trials."""
    if not brackets:
        return settings.epochs
    eta, count = settings.pruner.reduction, len(brackets)
    shares: list[int] = [-(-count * eta ** (count - 1 - number) // (count - number)) for number in range(count)]
    total = 0.0
    for share, rungs in zip(shares, brackets, strict=True):
        reached, before = 1.0, 0
        for rung in [*rungs, settings.epochs]:
            total += share * reached * (rung - before)
            reached, before = reached / eta, rung
    return total / sum(shares)


def _seeds_for(significance: float) -> int:
    seeds = 2
    while smallest_p(seeds) > significance:
        seeds += 1
    return seeds


def processors_note(settings: TuneConfig, cores: int) -> str | None:
    """What to say if the workers ask for more threads than there are processors."""
    used = threads(settings, cores)
    if settings.workers * used > cores and settings.train.runtime.device in ("auto", "cpu"):
        return f"note: {settings.workers} workers of {used} threads share {cores} processors"
    return None


def threads(settings: TuneConfig, cores: int) -> int:
    """Threads of each worker: as set, or its share of the processors."""
    return settings.train.runtime.threads or max(1, cores // settings.workers)


def _list(values: object) -> str:
    return ", ".join(map(str, values))  # type: ignore[call-overload]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
