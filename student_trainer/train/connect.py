"""The teacher of a run: connected, checked, and known by a name of its own."""

from __future__ import annotations

import logging

from shared.store import Store
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import NAME_LENGTH, ClientConfig
from student_trainer.distill.query import check_teacher
from student_trainer.distill.teacher import NullTeacher, Teacher
from student_trainer.train.config import TrainConfig
from student_trainer.train.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

FOR_EVER_SECONDS = 365 * 86_400.0
"""How long other ranks wait for one that waits for its teacher without a limit."""


def patience_seconds(client: ClientConfig) -> float:
    """How long a rank may wait for its teacher, at the start and then for one answer."""
    return client.connect_seconds + (client.patience_seconds or FOR_EVER_SECONDS)


def connect(settings: TrainConfig, store: Store, ranks: Ranks = ALONE) -> Teacher:
    """The teacher of a run, or of its rank; a `NullTeacher` if it has none.

    Raises:
        Unavailable: it does not answer in time.
        CompatibilityError: it does not fit the store or the settings.
    """
    if not settings.distils:
        log.info("training without a teacher (%s)", "teacher=none" if settings.teacher == "none" else "weight 0")
        return NullTeacher()
    teacher = GrpcTeacher(settings.teacher, client_of(settings.client, ranks))
    try:
        check_teacher(teacher.info, store, settings.distill, settings.teacher)
    except BaseException:
        teacher.close()
        raise
    log.info(
        "teacher at %s: weights %s, %s on %s",
        settings.teacher, teacher.revision, teacher.info.compute_dtype, teacher.info.device,
    )  # fmt: skip
    return teacher


def client_of(client: ClientConfig, ranks: Ranks) -> ClientConfig:
    """A rank's own name for the teacher, which shares its time among names."""
    if ranks.world == 1 or not client.name:  # a name made up is one process's own
        return client
    suffix = f"-rank{ranks.rank}"
    return client.model_copy(update={"name": client.name[: NAME_LENGTH - len(suffix)] + suffix})
