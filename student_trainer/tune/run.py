"""`student-trainer tune`: plan, slots, workers, results.

OUT/config.yaml               settings
OUT/optuna.db                 the study, unless `storage.url` says where it is
OUT/optuna_trials/            a folder a trial, named after its number, arm and state
OUT/optuna_results/<study>/   best_trial, best_params.yaml, study_summary.json, final_results.json, figures/
OUT/logs/worker-<number>.log  what the workers say

The same command goes on with a study that was stopped, or adds this machine's workers to one that is under way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from shared import claims, config, files, lock, progress, provenance
from shared.address import answers_path
from shared.errors import ConfigError
from shared.sinks import check_wandb
from shared.store import Store
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import check, connect
from student_trainer.tune import folders, phases, plan, results
from student_trainer.tune.config import TuneConfig
from student_trainer.tune.phases import SUFFIXES, Phase, open_phase
from student_trainer.tune.plan import Plan
from student_trainer.tune.pool import WorkerPool
from student_trainer.tune.space import Point, apply
from student_trainer.tune.storage import is_there, open_storage, url_of
from student_trainer.tune.trial import Task

log = logging.getLogger(__name__)

DECIDE_QUESTIONS = ("distill.window", "batch.max_steps", "batch.candidate_top_k")
"""Settings that decide what a teacher is asked: each value in the space must be one that it can answer."""
OPEN_QUESTION = "The final runs are not done: whether the teacher helps is open."
LOOK_SECONDS = 1.0
"""Between two looks at the workers."""


def run(settings: TuneConfig) -> int:
    """Runs the phases that are not left out; prints the findings as JSON on stdout."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    planned = plan.make(settings)
    if settings.dry_run:
        return _run_dry(settings, planned)
    check_wandb(settings.train.log.wandb)  # once: a trial goes on without it
    revision = _check_teacher(settings)
    with claims.directory(settings.out):
        _check_out(settings.out)
        log.info("settings: %s", config.in_force(settings))
        return _run(settings, planned, revision)


def _run_dry(settings: TuneConfig, planned: Plan) -> int:
    """Refuses what the study would refuse, as far as nobody need answer and nothing is written, and tells the rest."""
    if settings.out.exists():
        _check_out(settings.out)
    revision = None if answers_path(settings.teacher) is None else _check_teacher(settings)
    seconds = None
    if is_there(settings.storage, settings.out):
        storage = open_storage(settings.storage, settings.out)
        seconds = results.seconds_per_epoch(existing(planned, storage, revision))
    _tell(planned, seconds)
    return 0


def _check_out(out: Path) -> None:
    if not out.is_dir():
        raise ConfigError(f"{out} is not a directory; {claims.CHOOSE}")
    claims.check(out, "the directory of a study", _is_of_a_study)


def _run(settings: TuneConfig, planned: Plan, revision: str) -> int:
    storage = open_storage(settings.storage, settings.out)
    _tell(planned, results.seconds_per_epoch(existing(planned, storage, revision)))
    _claim(settings)
    print(f"storage {url_of(settings.storage, settings.out)}", file=sys.stderr)
    try:
        for phase in existing(planned, storage, revision):
            folders.tidy(phase)
            phase.reap_and_refill(again="lost" if phase.number == 1 else "all")
        with WorkerPool(settings, revision) as workers:
            for number in settings.phases:
                phase = open_phase(number, planned, storage, revision)
                phase.slots.fill(phase.fixed)
                _log_duration(planned, number, results.seconds_per_epoch(existing(planned, storage, revision)))
                _watch(phase, workers)
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on")
        raise
    finally:
        found = existing(planned, storage, revision)
        for phase in found:
            folders.tidy(phase)
        findings = results.write(settings, sorted([*found, *skipped(planned, storage)], key=lambda p: p.number))
    for sentence in (findings.get("verdict", OPEN_QUESTION), f"open {Path(findings['out']) / 'study.html'}"):
        print(sentence, file=sys.stderr)
    print(json.dumps(findings))
    return 0


def _tell(planned: Plan, seconds_per_epoch: float | None) -> None:
    """Says what will happen."""
    for line in planned.lines(seconds_per_epoch):
        print(line, file=sys.stderr)
    if note := plan.processors_note(planned.settings, provenance.cores()):
        print(note, file=sys.stderr)


def _log_duration(planned: Plan, phase: int, seconds_per_epoch: float | None) -> None:
    """Says how long a whole phase takes, once it is known how long an epoch does."""
    if seconds_per_epoch is not None:
        log.info("phase %d takes about %s", phase, planned.duration(phase, seconds_per_epoch))


def existing(planned: Plan, storage: BaseStorage, revision: str | None) -> list[Phase]:
    """The phases of this command that have begun, here or elsewhere; raises as `open_phase`."""
    return [open_phase(number, planned, storage, revision) for number in _begun(planned, storage, skipped=False)]


def skipped(planned: Plan, storage: BaseStorage) -> list[Phase]:
    """The phases that this command leaves out and others have begun: of the same study, so that results hold them."""
    found = []
    for number in _begun(planned, storage, skipped=True):
        try:
            found.append(open_phase(number, planned, storage, None))
        except ConfigError as error:
            log.warning("the results leave out phase %d: %s", number, error)
    return found


def _begun(planned: Plan, storage: BaseStorage, skipped: bool) -> list[int]:
    """Numbers of the phases that are in the storage, and that this command leaves out or does not."""
    settings, names = planned.settings, optuna.get_all_study_names(storage)
    return [n for n in SUFFIXES if (n in settings.skip) == skipped and settings.study + SUFFIXES[n] in names]


def _check_teacher(settings: TuneConfig) -> str:
    """The weights that the teacher serves; refuses one that does not fit before anything is started."""
    store = Store(settings.data)
    searched = {n: p.grid() or p.corners() for n, p in settings.space.items() if n in DECIDE_QUESTIONS}
    first = {name: values[0] for name, values in searched.items()}
    with contextlib.closing(connect(_settings_at(first, settings), store)) as teacher:
        for name, values in searched.items():
            for value in values:
                check(teacher, _settings_at(first | {name: value}, settings), store)
        return teacher.revision


def _settings_at(point: Point, settings: TuneConfig) -> TrainConfig:
    """Of a run at a point of the space."""
    task = Task(
        data=settings.data, teacher=settings.teacher, recipe=apply(settings.train, point), epochs=settings.epochs,
        seeds=settings.seeds, objective=settings.objective, group=settings.study, name="",
    )  # fmt: skip
    return task.settings(settings.out, settings.seeds[0])


def _claim(settings: TuneConfig) -> None:
    """Makes OUT this study's; the settings are saved for the workers.

    Raises:
        ConfigError: it is another study's.
    """
    saved = settings.out / "config.yaml"
    if saved.exists():
        before = config.load(TuneConfig, "tune", [saved])
        if before.study != settings.study:
            raise ConfigError(f"{settings.out} is the directory of study {before.study}; choose another --out")
    for name in ("optuna_trials", "logs"):
        files.make_directory(settings.out / name)
    config.save(settings, "tune", saved)


def _is_of_a_study(out: Path) -> bool:
    """Whether it holds settings of a study, or nothing but the storage of a command that was killed at once."""
    return claims.written_by(out) == "tune" or all(
        path.name.startswith(("optuna.db", lock.NAME)) for path in out.iterdir()
    )


def _watch(phase: Phase, workers: WorkerPool) -> None:
    """Waits until every slot of a phase is filled, here or elsewhere; a line for every trial that ends."""
    done = {trial.number for trial in phase.slots.ended()}
    bar = progress.bar(total=len(phase.fixed), initial=len(done), unit="trial", desc=f"phase {phase.number}")
    with bar:
        is_open = True
        while is_open:
            is_open = phase.slots.open > 0  # before the last look, so that nothing ends unseen
            if is_open:
                workers.check(phase.reap_and_refill)
            for trial in phase.slots.ended():
                if trial.number not in done:
                    done.add(trial.number)
                    log.info("%s", _line(phase, trial))
                    bar.update()
                    workers.forgive()
            if is_open:
                time.sleep(LOOK_SECONDS)


def _line(phase: Phase, trial: FrozenTrial) -> str:
    """What became of a trial."""
    point = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in trial.params.items())
    start = f"{phase.name(trial)} {phases.STATES[trial.state]}" + (f" ({point})" if point else "")
    if trial.state == TrialState.FAIL:
        return f"{start}: {trial.user_attrs['error']}"
    result = trial.user_attrs["result"]
    values = ", ".join(f"{value:.5g}" for value in result["values"])
    ahead = ""
    if phase.number == 1 and (best := phases.best_trial(phase.slots.study)) is not None:
        ahead = f"; best {best.values[0]:.5g}, {phase.name(best)}"
    return (
        f"{start}: {values} after {result['epochs']} epochs, {result['seconds']:.0f} s, "
        f"teacher {result['teacher_seconds']:.2f} s{ahead}"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
