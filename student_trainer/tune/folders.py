"""The folders of trials: one each, named after the trial and its state, moved as the state changes.

OUT/optuna_trials/trial_NNN_{vanilla,distilled}_{running,complete,pruned,failed}/   phases 0 and 1
OUT/optuna_trials/final_seedNN_{vanilla,distilled}_{...}/                           phases 2 and 3
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from shared import claims, files
from shared.lock import Held
from student_trainer.tune.phases import STATES, Phase
from student_trainer.tune.slots import AnyTrial

log = logging.getLogger(__name__)

RUNNING = "running"


def path(phase: Phase, trial: AnyTrial, state: str) -> Path:
    """Where a trial is kept."""
    return phase.settings.out / "optuna_trials" / f"{phase.name(trial)}_{state}"


def find(phase: Phase, trial: FrozenTrial) -> Path | None:
    """Where an ended trial is, if it is on this machine."""
    found = path(phase, trial, STATES[trial.state])
    return found if found.is_dir() else None


def adopt(phase: Phase, trial: optuna.Trial) -> Path:
    """The folder of a claimed trial; what an earlier attempt at its slot has left here is gone on with.

    Not if somebody trains there still: a worker that was taken for lost, for it was stopped for a while.
    """
    folder = path(phase, trial, RUNNING)
    before = trial.user_attrs.get("retry_of")
    if before is not None and not phase.is_final:
        earlier = next(t for t in phase.slots.study.get_trials(deepcopy=False) if t.number == before)
        left = path(phase, earlier, RUNNING)
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
    folder, target = path(phase, trial, RUNNING), path(phase, trial, STATES[state])
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
        if is_over and path(phase, trial, RUNNING).is_dir():
            attrs = trial.user_attrs
            note = {"number": trial.number, "slot": attrs["slot"], "params": trial.params, "error": attrs.get("error")}
            keep(phase, trial, trial.state, note | attrs.get("result", {}))


def record_failure(phase: Phase, trial: FrozenTrial) -> None:
    """Leaves word of an attempt whose work another one goes on with."""
    note = {"number": trial.number, "slot": trial.user_attrs["slot"], "state": "failed", "params": trial.params}
    files.write_json(path(phase, trial, "failed") / "trial.json", note | {"error": trial.user_attrs["error"]})
