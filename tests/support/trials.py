"""Small studies, and single trials of them without worker processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optuna

from shared.store import Store
from student_trainer.tune import plan, worker
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.phases import Phase, open_phase
from student_trainer.tune.storage import open_storage

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"batch_size": 8},
    "runtime": {"threads": 1, "device": "cpu"},
    "log": {"tensorboard": False, "every": 2},
}


def tune_settings(store: Store, out: Path, **given: Any) -> TuneConfig:
    values: dict[str, Any] = {"data": store.path, "teacher": "none", "out": out, "train": SMALL, "epochs": 3}
    values |= {"sampler": {"name": "random"}, "pruner": {"name": "none"}, "final": {"epochs": 2, "seeds": [3, 4]}}
    return TuneConfig.model_validate(values | given)


def phase_of(settings: TuneConfig, number: int = 1) -> Phase:
    settings.out.mkdir(exist_ok=True)
    planned = plan.Plan(settings, (), 0, 0, [], {}, 0)
    phase = open_phase(number, planned, open_storage(settings.storage, settings.out), "")
    phase.slots.fill(phase.fixed)
    return phase


def run_one(phase: Phase) -> optuna.trial.FrozenTrial:
    claimed = phase.slots.claim(phase.make_sampler)
    assert claimed is not None
    worker.run_trial(phase, phase.slots._storage, claimed, os.getppid())
    return phase.slots.study.trials[claimed.number]
