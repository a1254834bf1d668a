"""Where a run goes on: which checkpoint, whether it fits, what is written to one and read from it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store
from student_trainer.distill.destination import FEATURES, DestinationTarget
from student_trainer.model import upstream
from student_trainer.model.history_head import HistoryHead
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint
from student_trainer.runs.layout import RunFiles, check_unused
from student_trainer.train.config import TrainConfig
from student_trainer.train.meters import Sums
from student_trainer.train.optim import random_state, restore_optimizer, restore_scaler, set_random_state
from student_trainer.train.trainer import Trainer

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("resume", "profile", "teacher", "client", "log", "runtime", "out", "data")
"""Settings that a resumed run may change: where and how it runs. Another runtime changes the last bits."""


HEAD, TARGET = "head.", "target"
"""Names in a checkpoint's `distillation`: what begins with the first, and the second."""


def find_checkpoint(settings: TrainConfig, store: Store) -> Checkpoint | None:
    """The checkpoint to resume from, if any. OUT is claimed by then: temporary files are nobody's.

    Raises:
        ConfigError: OUT holds a run, and it is not resumed or has other settings.
        CompatibilityError: it was trained on another store.
        FileFormatError: none of its checkpoints can be read.
    """
    if not settings.resume:
        check_unused(settings.out)
        return None
    last = RunFiles(settings.out).last
    for name in ("last", "best"):
        checkpoints.remove_halves(last.with_stem(name))
    found = checkpoints.load_newest(last)
    if found is None:
        log.info("%s has no checkpoint yet; starting at step 0", settings.out)
    else:
        _check_resumable(settings, store, found)
    return found


def _check_resumable(settings: TrainConfig, store: Store, found: Checkpoint) -> None:
    if found.store != store.fingerprint:
        raise CompatibilityError(f"the run in {settings.out} was trained on another store than {store.path}")
    now = settings.model_dump(mode="json")
    changed = [k for k in now if k not in FREE_TO_CHANGE and now[k] != found.config.get(k)]
    if changed:
        raise ConfigError(
            f"cannot resume {settings.out} with other settings: {', '.join(changed)} differ from its config.yaml"
        )


def restore(trainer: Trainer, found: Checkpoint, revision: str) -> None:
    """Brings a new trainer to where a checkpoint was written; the sums since the last metrics are the first rank's.

    Args:
        trainer: of the same settings.
        found: the checkpoint.
        revision: of the teacher's weights now.

    Raises:
        CompatibilityError: they are not those that the run was distilled from.
        FileFormatError: the checkpoint does not hold the state of such a run.
    """
    if found.teacher_revision != revision:
        raise CompatibilityError(
            f"the run was distilled from teacher weights {found.teacher_revision or 'none'}, "
            f"the teacher serves {revision or 'none'}; serve the same teacher file to resume"
        )
    runtime = trainer.runtime
    upstream.load_into(trainer.model, found.model)
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


def snapshot(trainer: Trainer, store: Store, revision: str, target: DestinationTarget | None = None) -> Checkpoint:
    """What `restore` needs, as the trainer stands."""
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
        sums=trainer.sums.totals(),
        random_state=random_state(trainer.runtime.device),
        torch=str(torch.__version__),
    )
