"""A process that fills slots as fast as it can, or holds one until it is killed.

    fill_slots.py URL FOLDER SLOTS SECONDS

Prints `slot number` of each trial that it has filled; SECONDS is how long it works on each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from student_trainer.tune.config import StorageConfig
from student_trainer.tune.slots import Slots, open_study
from student_trainer.tune.storage import open_storage

if __name__ == "__main__":
    url, folder, count, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = StorageConfig(url=url)
    storage = open_storage(config, folder)
    study = open_study(storage, "race", ["maximize"], {"about": 1}, NopPruner())
    slots = Slots(study, storage, config, folder / "lock")
    while slots.open or not slots.count:
        slots.reap()
        slots.fill([{"x": 0.5}] * 2 + [None] * (count - 2))
        trial = slots.claim(lambda slot: RandomSampler(seed=slot))
        if trial is None:
            time.sleep(0.05)
            continue
        value = trial.suggest_float("x", 0, 1)
        print("claimed", trial.user_attrs["slot"], trial.number, value, flush=True)
        time.sleep(seconds)
        if slots.tell(trial, TrialState.COMPLETE, [value]):
            print("filled", trial.user_attrs["slot"], trial.number, value, flush=True)
