"""The teacher of a run: connected, checked, and known by a name of its own."""

from __future__ import annotations

import logging

from shared.address import answers_path
from shared.store import Store
from shared.training.torch_ranks import ALONE, Ranks
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import NAME_LENGTH, ClientConfig
from student_trainer.distill.offline import FileTeacher, check_answers
from student_trainer.distill.query import check_teacher
from student_trainer.distill.teacher import NullTeacher, Teacher
from student_trainer.train.config import TrainConfig

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
        FileFormatError: its answers are in a file that cannot be read.
        CompatibilityError: it does not fit the store or the settings.
    """
    if not settings.distils:
        but = " but sampled_labels" if settings.distill.sampled_labels else ""
        without = f"teacher=none, so distill.* does nothing{but}" if settings.teacher == "none" else "weight 0"
        log.info("training without a teacher (%s)", without)
        return NullTeacher()
    path = answers_path(settings.teacher)
    teacher = FileTeacher(path) if path else GrpcTeacher(settings.teacher, client_of(settings.client, ranks))
    try:
        check(teacher, settings, store)
    except BaseException:
        teacher.close()
        raise
    about = teacher.header if isinstance(teacher, FileTeacher) else teacher.info
    log.info(
        "teacher at %s: weights %s, %s on %s", settings.teacher, teacher.revision, about.compute_dtype, about.device
    )
    return teacher


def check(teacher: Teacher, settings: TrainConfig, store: Store) -> None:
    """Refuses an open teacher that does not fit the store or the settings; raises `CompatibilityError`."""
    if isinstance(teacher, FileTeacher):
        batch = settings.batch
        check_answers(teacher.header, store, settings.distill, batch.candidate_top_k, batch.max_steps, teacher.path)
    elif isinstance(teacher, GrpcTeacher):
        check_teacher(teacher.info, store, settings.distill, settings.teacher)


def client_of(client: ClientConfig, ranks: Ranks) -> ClientConfig:
    """A rank's own name for the teacher, which shares its time among names."""
    if ranks.world == 1 or not client.name:  # a name made up is one process's own
        return client
    suffix = f"-rank{ranks.rank}"
    return client.model_copy(update={"name": client.name[: NAME_LENGTH - len(suffix)] + suffix})
