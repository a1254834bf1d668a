"""Where a run goes on: which checkpoint, whether it fits, what is written to one and read from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import config
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store
from shared.training import generations
from shared.training.states import random_state, restore_optimizer, restore_scaler, set_random_state
from student_trainer.distill.destination import FEATURES, DestinationTarget
from student_trainer.model import students
from student_trainer.model.history_head import HistoryHead
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint
from student_trainer.runs.layout import RunFiles, check_unused
from student_trainer.train.config import TrainConfig
from student_trainer.train.meters import Sums
from student_trainer.train.optim import distill_share, learning_rate
from student_trainer.train.schedule import Schedule
from student_trainer.train.trainer import Trainer

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("resume", "profile", "teacher", "client", "log", "runtime", "out", "data")
"""Settings that a resumed run may change: where and how it runs. Another runtime changes the last bits."""
FORMERLY: dict[str, Any] = {"distill.target": "history", "distill.head": 0.0, "distill.schedule": "constant"}
"""What versions did that did not have these settings yet, where their defaults are something else."""
FORMERLY_WITH: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("batch.sampled", None, {"batch.labelled_passes": 1, "batch.sampled_share": 1.0}),
    ("teacher", "none", {"distill.time_factor": 1.0}),
)
"""The same of runs whose setting (the first) is there and not so (the second); of others these say nothing."""
GONE: dict[str, Any] = {"distill.head_fades": False}
"""What is done now instead of settings that there were."""
MISSING = "nothing"
"""In place of a setting that there is not."""


def extended(settings: TrainConfig) -> TrainConfig:
    """The settings of a run that goes on to `continue_to` epochs; as they are if it does not."""
    if not settings.continue_to:
        return settings
    optim = settings.optim.model_copy(update={"epochs": settings.continue_to})
    return settings.model_copy(update={"resume": True, "optim": optim})


HEAD, TARGET = "head.", "target"
"""Names in a checkpoint's `distillation`: what begins with the first, and the second."""


def find_checkpoint(settings: TrainConfig, store: Store) -> Checkpoint | None:
    """The checkpoint to resume from, if any. OUT is claimed by then: temporary files are nobody's.

    Raises:
        ConfigError: OUT holds a run, and it is not resumed or has other settings; or there is none to continue; or a
            run begins with settings that have no effect.
        CompatibilityError: it was trained on another store.
        FileFormatError: none of its checkpoints can be read.
    """
    if not settings.resume:
        check_unused(settings.out)
        settings.check_effects()
        return None
    last = RunFiles(settings.out).last
    for name in ("last", "best"):
        generations.remove_halves(last.with_stem(name))
    found = checkpoints.load_newest(last)
    if found is not None:
        _check_resumable(settings, store, found)
    elif settings.continue_to:
        raise ConfigError(f"{settings.out} has no checkpoint to continue; begin a run with optim.epochs instead")
    else:
        settings.check_effects()
        log.info("%s has no checkpoint yet; starting at step 0", settings.out)
    return found


def _check_resumable(settings: TrainConfig, store: Store, found: Checkpoint) -> None:
    if found.store != store.fingerprint:
        raise CompatibilityError(f"the run in {settings.out} was trained on another store than {store.path}")
    before, now = found.config, settings.model_dump(mode="json")
    ours, theirs = (_value(values, "model.name") for values in (now, before))
    if ours != theirs:  # hardly another setting of theirs means anything then
        raise ConfigError(
            f"cannot resume {settings.out} with another student: model.name is {theirs} there, {ours} here. Give it "
            f"model.name={theirs}, or begin a run in another --out"
        )
    free = ("batch.sampled",) if found.sampled else ()  # where it is; what it holds is compared when it is read
    changed = [key for key in config.differing(now, before) if key not in free and not _is_free(key, now, before)]
    epochs = int(before["optim"]["epochs"])
    if settings.continue_to:
        if settings.continue_to < epochs:
            raise ConfigError(
                f"{settings.out} trains for {epochs} epochs already; --continue-to takes that or more, not "
                f"{settings.continue_to}"
            )
        changed = [key for key in changed if key not in ("optim.epochs", "continue_to")]
    if changed:
        told = "; ".join(
            f"{key} is {_value(before, key)} there{_lacking(key, before)}, {_value(now, key)} here" for key in changed
        )
        raise ConfigError(f"cannot resume {settings.out} with other settings: {told}. {_way_out(changed, now, before)}")


def _is_free(key: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a setting may differ; also where an older version had none, and it is what that version did."""
    return key.partition(".")[0] in FREE_TO_CHANGE or _value(before, key) == _value(now, key)


def _way_out(changed: Sequence[str], now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What is sound instead."""
    if gone := [key for key in changed if key in GONE]:
        return f"There is no {', '.join(gone)} any more: such a run cannot go on. Begin one in another --out"
    older = [f"{key}={_value(before, key)}" for key in changed if _lacking(key, before)]
    lacking = f" and {' '.join(older)}, which its version did without saying" if older else ""
    again = f"Give it the settings of its config.yaml{lacking}, or begin a run in another --out"
    more = max(now["optim"]["epochs"], before["optim"]["epochs"])
    is_more = now["optim"]["epochs"] > before["optim"]["epochs"] or before.get("continue_to")
    if set(changed) <= {"optim.epochs", "continue_to"} and is_more:
        return (
            f"--continue-to {more} goes on to {more} epochs in all, with its schedule stretched: not the run that "
            f"optim.epochs={more} gives from the start. {again}"
        )
    return f"{again}: a run has one set of settings from its first step to its last"


def _lacking(key: str, settings: Mapping[str, Any]) -> str:
    """Where a run's version did not have a setting, that it did not."""
    return " (of an older version)" if _given(settings, key) is MISSING else ""


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """Of a dotted key; where there is none, what the version did that lacked it."""
    value = _given(settings, key)
    if value is not MISSING:
        return value
    formerly = FORMERLY | GONE
    for part, none, values in FORMERLY_WITH:
        if _given(settings, part) not in (none, MISSING):
            formerly |= values
    return formerly.get(key, _given(TrainConfig(data=Path(), out=Path()).model_dump(mode="json"), key))


def _given(settings: Mapping[str, Any], key: str) -> Any:
    """The same, without what is not there."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
    return value


def check_sources(found: Checkpoint, revision: str, sampled: str) -> None:
    """Whether a run goes on to learn from what it has learned from.

    Args:
        found: the checkpoint.
        revision: of the teacher's weights now.
        sampled: digest of the sampled trips now; empty where there are none.

    Raises:
        CompatibilityError: the run was distilled from other weights, or mixed in other sampled trips.
    """
    if found.teacher_revision and not revision:
        raise CompatibilityError(
            f"the run was distilled from a teacher (weights {found.teacher_revision}), and there is none now: "
            "give the address of one that serves these, with --teacher"
        )
    if revision and not found.teacher_revision:
        raise CompatibilityError("the run was trained without a teacher, and there is one now: leave out --teacher")
    if found.teacher_revision != revision:
        raise CompatibilityError(
            f"the run was distilled from teacher weights {found.teacher_revision}, the teacher serves {revision}; "
            "serve the same teacher file to resume"
        )
    if found.sampled and found.sampled != sampled:
        raise CompatibilityError(
            f"the run mixed in other trips than batch.sampled has now (sampled again?); give it those of its "
            f"beginning, in {found.config['batch']['sampled']} then, or begin a run in another --out"
        )


def restore(trainer: Trainer, found: Checkpoint) -> None:
    """Brings a new trainer to where a checkpoint was written; the sums since the last metrics are the first rank's.

    Args:
        trainer: of the same settings.
        found: the checkpoint.

    Raises:
        FileFormatError: the checkpoint does not hold the state of such a run.
    """
    runtime = trainer.runtime
    students.architecture_of(trainer.model).load(trainer.model, found.model)
    _restore_head(trainer.head, found.distillation)
    restore_optimizer(trainer.optimizer, found.optimizer)
    restore_scaler(runtime.precision.scaler, found.scaler)
    set_random_state(found.random_state, runtime.device)
    trainer.progress = found.progress
    if runtime.ranks.is_first:
        trainer.sums = Sums.of([found.sums])
    log.info("resuming at step %d", found.progress.step)


def _restore_head(head: HistoryHead | None, values: dict[str, Tensor]) -> None:
    if head is None:
        return
    given = {name.removeprefix(HEAD): value for name, value in values.items() if name.startswith(HEAD)}
    try:
        head.load_state_dict(given)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"the checkpoint's destination-free head is damaged: {reason}") from None


def target_of(found: Checkpoint) -> DestinationTarget:
    """The destination-aware target that a run was begun with.

    Raises:
        FileFormatError: the checkpoint does not hold one.
    """
    coefficients = found.distillation.get(TARGET)
    if coefficients is None or coefficients.shape != (len(FEATURES),):
        raise FileFormatError(f"the checkpoint holds no {len(FEATURES)} coefficients of a destination-aware target")
    return DestinationTarget(coefficients.double().numpy())


def note_extension(trainer: Trainer, schedule: Schedule, found: Checkpoint) -> None:
    """Keeps in the run's progress, and says, that it has got more epochs than its checkpoint was written for."""
    before, now = int(found.config["optim"]["epochs"]), trainer.settings.optim.epochs
    if now <= before:
        return
    step, optim = trainer.progress.step, trainer.settings.optim
    trainer.progress.extended.append({"step": step, "from_epochs": before, "to_epochs": now})
    last = learning_rate(max(step - 1, 0), schedule.steps_per_epoch * before, optim)
    log.info(
        "the schedule is stretched from %d to %d epochs: the learning rate goes from %.3g to %.3g and then falls to "
        "%.3g. A run of %d epochs from the start would have been another one",
        before, now, last, learning_rate(step, schedule.total_steps, optim), optim.final_lr * optim.learning_rate, now,
    )  # fmt: skip
    if trainer.settings.distils and trainer.settings.distill.schedule != "constant":
        distill = trainer.settings.distill
        log.info(
            "with it the share of distill.weight that is left goes from %.3g to %.3g",
            distill_share(max(step - 1, 0), schedule.steps_per_epoch * before, distill),
            distill_share(step, schedule.total_steps, distill),
        )


def snapshot(
    trainer: Trainer, store: Store, revision: str, sampled: str = "", target: DestinationTarget | None = None
) -> Checkpoint:
    """What `restore` and `check_sources` need, as the trainer stands."""
    distillation = {} if target is None else {TARGET: torch.from_numpy(target.coefficients.copy())}
    if trainer.head is not None:
        distillation |= {HEAD + name: value for name, value in trainer.head.state_dict().items()}
    return Checkpoint(
        model=trainer.model.state_dict(),
        distillation=distillation,
        optimizer=trainer.optimizer.state_dict(),
        scaler=trainer.runtime.precision.scaler.state_dict(),
        progress=trainer.progress,
        config=trainer.settings.model_dump(mode="json"),
        store=store.fingerprint,
        mu=trainer.scale.mu,
        sigma=trainer.scale.sigma,
        teacher_revision=revision,
        sampled=sampled,
        sums=trainer.sums.totals(),
        random_state=random_state(trainer.runtime.device),
        torch=str(torch.__version__),
    )
