"""Optuna's samplers and pruners by name, and what is known of them before they start."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from student_trainer.tune.config import PrunerConfig, SamplerConfig, TuneConfig

GENERATION, OPTIMIZER = "cma:generation", "cma:optimizer"
"""System attributes that CMA-ES leaves in its trials."""
SMALLEST_POPULATION = 4
GENERATIONS = 3
"""How many of CMA-ES are to fit, at the cost of a population smaller than usual."""


def make_sampler(config: SamplerConfig, population: int, slot: int, prunes: bool) -> BaseSampler:
    """The sampler that proposes one slot's setting.

    Samplers read the past from the study, and are made anew for each slot so that a proposal does not depend on which
    process asks, nor on whether the study was interrupted.
    """
    seed = (config.seed * 1_000_003 + slot) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match config.name:
            case "cmaes":
                return CmaEsSampler(
                    seed=seed,
                    popsize=population,
                    consider_pruned_trials=prunes,  # else a generation would wait for trials that are not pruned
                    independent_sampler=RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=6, multivariate=True, constant_liar=True)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=6)
            case "random" | "grid":  # every point of a grid is a slot of its own
                return RandomSampler(seed=seed)


def make_pruner(config: PrunerConfig, epochs: int) -> BasePruner:
    """The pruner; epochs count from 1."""
    match config.name:
        case "hyperband":
            return HyperbandPruner(config.min_epochs, epochs, config.reduction)
        case "median":
            return MedianPruner(n_startup_trials=config.startup, n_warmup_steps=config.min_epochs - 1)
        case "none":
            return NopPruner()


def brackets(config: PrunerConfig, epochs: int) -> list[list[int]]:
    """Hyperband's brackets: the epochs after which each judges (Li et al. 2018, as Optuna counts)."""
    count = _power(epochs / config.min_epochs, config.reduction) + 1
    found = []
    for bracket in range(count):
        rungs = [config.min_epochs * config.reduction**i for i in range(bracket, count)]
        found.append([rung for rung in rungs if rung < epochs])
    return found


def _power(ratio: float, base: int) -> int:
    """The largest n with base^n <= ratio; floor(log) would be wrong by rounding."""
    power = 0
    while base ** (power + 1) <= ratio:
        power += 1
    return power


def population(settings: TuneConfig) -> int:
    """Trials in a generation of CMA-ES: as usual (Hansen 2016, 4 + floor(3 ln n)), or fewer for a small budget."""
    if settings.sampler.population:
        return settings.sampler.population
    usual = 4 + math.floor(3 * math.log(max(len(settings.space), 1)))
    return max(SMALLEST_POPULATION, min(usual, settings.trials // GENERATIONS))


def generations(study: optuna.Study) -> dict[int, int]:
    """Of each generation of CMA-ES, how many of its trials have ended with a value."""
    counts: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False):
        is_counted = trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        if is_counted and GENERATION in trial.system_attrs:
            generation = trial.system_attrs[GENERATION]
            counts[generation] = counts.get(generation, 0) + 1
    return dict(sorted(counts.items()))
