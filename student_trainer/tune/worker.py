"""A worker: claims slots and trains them, phase after phase, until none is left.

    python -m student_trainer.tune.worker CONFIG NUMBER PARENT REVISION

Started by `tune`; ends when its parent does.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from shared import config
from shared import log as logging_setup
from shared.errors import CompatibilityError, ReportableError, TeacherError, TrainingError
from student_trainer.model.device import Seen, share_out
from student_trainer.tune import folders, plan, trial
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.liveness import heartbeat, stop_if_orphaned
from student_trainer.tune.phases import Phase, open_phase
from student_trainer.tune.plan import Plan
from student_trainer.tune.slots import STOPPED
from student_trainer.tune.storage import open_storage
from student_trainer.tune.trial import Values

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Between two looks for a slot, while others hold the last ones."""


def main(arguments: list[str]) -> int:
    """Runs a worker; the exit code is that of a job."""
    path, number, parent, revision = Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    logging_setup.setup()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = config.load(TuneConfig, "tune", [path])
        logging_setup.setup(format=settings.train.log.format)
        with logging_setup.captured():
            work(plan.make(on_device(settings, number)), revision, parent)
    except ReportableError as error:
        logging_setup.say("tune", str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def on_device(settings: TuneConfig, number: int) -> TuneConfig:
    """The settings of the worker of a number: of several accelerators each has its own."""
    runtime = settings.train.runtime
    device = share_out(runtime.device, number, Seen.here().devices)
    runtime = runtime.model_copy(update={"device": device})
    return settings.model_copy(update={"train": settings.train.model_copy(update={"runtime": runtime})})


def work(plan: Plan, revision: str, parent: int) -> None:
    """Fills the slots of all phases that are asked for.

    Raises:
        TrainingError: too many trials failed by errors of their own.
        TeacherError, CompatibilityError: the teacher cannot be used.
        KeyboardInterrupt: told to stop; the trial under way is tried again when the study goes on.
    """
    storage = open_storage(plan.settings.storage, plan.settings.out)
    for number in plan.settings.phases:
        phase = open_phase(number, plan, storage, revision)
        while True:
            phase.reap_and_refill()
            check_failures(phase)
            stop_if_orphaned(parent)
            claimed = phase.slots.claim(phase.make_sampler)
            if claimed is not None:
                run_trial(phase, storage, claimed, parent)
            elif phase.slots.open:
                time.sleep(IDLE_SECONDS)
            else:
                break


def check_failures(phase: Phase) -> None:
    """Ends a phase of which too much has failed.

    Raises:
        TrainingError: with the last error, and where its traceback is.
    """
    failed = [trial for trial in phase.slots.ended() if trial.state == TrialState.FAIL]
    if len(failed) > (phase.settings.max_failures if phase.number == 1 else 0):
        last = failed[-1]
        where = folders.find(phase, last)
        more = "; go on with a larger max_failures" if phase.number == 1 else ""
        raise TrainingError(
            f"{len(failed)} of the trials of phase {phase.number} failed, the last ({phase.name(last)}) by: "
            f"{last.user_attrs['error']}" + (f" (see {where / 'trial.json'})" if where else "") + more
        )


def run_trial(phase: Phase, storage: BaseStorage, claimed: optuna.Trial, parent: int) -> None:
    """Trains a claimed trial and says what came of it."""
    with heartbeat(storage, phase.slots.id_of(claimed), phase.settings.storage.heartbeat_seconds, parent):
        folder = folders.adopt(phase, claimed)
        slots, note = phase.slots, {"number": claimed.number, "slot": claimed.user_attrs["slot"]}
        try:
            task = phase.task(claimed)
            note |= {"params": claimed.params, "seeds": list(task.seeds), "epochs_asked": task.epochs}
            config.save(task.recipe, "train", folder / "recipe.yaml")
            result = trial.train(task, folder, _reporter(claimed, phase))
            if phase.is_final:
                result["final"] = trial.measure(task, folder, phase.settings.final.split)
            state = TrialState.PRUNED if result["pruned"] else TrialState.COMPLETE
            claimed.set_user_attr("result", result)
            if not slots.tell(claimed, state, None if result["pruned"] else _told(phase, result)):
                log.warning("trial %d was taken for lost while it ran; its result is not counted", claimed.number)
                return
        except KeyboardInterrupt:
            slots.lose(claimed, STOPPED, "its worker was told to stop")
            raise
        except (TeacherError, CompatibilityError) as error:
            slots.lose(claimed, STOPPED, f"the teacher: {error}")
            raise
        except Exception as error:  # this setting's own: out of memory, not finite, a bug
            text = f"{type(error).__name__}: {error}".strip()
            note |= {"error": text, "traceback": traceback.format_exc()}
            slots.fail(claimed, text, note["traceback"])
            folders.keep(phase, claimed, TrialState.FAIL, note)
            log.error("%s failed: %s", phase.name(claimed), text)
            return
        folders.keep(phase, claimed, state, note | result)


def _told(phase: Phase, result: dict[str, Any]) -> list[float]:
    """Values of a trial for its study, which has a single objective but for the search."""
    return list(result["values"]) if phase.number == 1 else [result["values"][0]]


def _reporter(claimed: optuna.Trial, phase: Phase) -> Callable[[int, Values], bool]:
    """Tells Optuna each epoch's value, and asks whether to go on."""

    def report(epoch: int, values: Values) -> bool:
        log.info("%s: epoch %d: %s", phase.name(claimed), epoch, ", ".join(f"{value:.5f}" for value in values))
        if len(values) > 1:  # of two objectives nothing is pruned
            return False
        claimed.report(values[0], epoch)
        return claimed.should_prune()

    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
