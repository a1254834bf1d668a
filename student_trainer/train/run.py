"""`student-trainer train`: open, connect, build, train, close.

OUT/config.yaml           resolved settings
OUT/checkpoints/last.pt   where to go on from; last.1.pt the one before it
OUT/checkpoints/best.pt   highest validation accuracy
OUT/hoser.pth             weights of best.pt as public HOSER loads them; other students: `students.Entry.published`
OUT/metrics.jsonl, tensorboard/, wandb/, wandb_run.json
OUT/summary.json          result of a finished run
OUT/profile.json, trace.json   where its time went, if `profile` is set
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time

import torch

from shared import claims, cli, tracing
from shared.errors import ConfigError
from shared.sinks import check_wandb
from shared.store import Store
from shared.training.stop import StopSignals
from shared.training.torch_ranks import Ranks, join
from student_trainer.data.sampled import read_document
from student_trainer.evaluate.headroom import left
from student_trainer.model.device import pick_device, use_threads
from student_trainer.runs.checkpoint import Checkpoint
from student_trainer.runs.layout import is_run
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import connect, patience_seconds
from student_trainer.train.resume import extended, find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run begins with on one rank.

    Attributes:
        device: this rank's.
        store: the data.
        resumed: the checkpoint to go on from, on the first rank; the others get it from there.
    """

    device: torch.device
    store: Store
    resumed: Checkpoint | None


def run(settings: TrainConfig) -> int:
    """Trains, alone or as one of the ranks that `torchrun` started; rank 0 prints a summary as JSON on stdout."""
    settings = extended(settings)
    with join(patience_seconds(settings.client)) as ranks, contextlib.ExitStack() as claimed:
        start = time.monotonic()
        inputs = ranks.together(lambda: open_inputs(settings, ranks, claimed))
        resumed = ranks.broadcast(inputs.resumed)
        teacher = ranks.together(lambda: connect(settings, inputs.store, ranks))
        tracing_spans = tracing.opened(settings.tracing, "student-trainer")
        with tracing_spans as tracer, StopSignals() as stop, contextlib.closing(teacher):
            runtime = Runtime.of(settings.runtime, inputs.device, ranks, stop, tracer)
            session = Session(settings, inputs.store, runtime, teacher, resumed)
            session.train()
            if ranks.is_first:
                summary = session.write_summary(time.monotonic() - start)
                print(json.dumps(summary | {"headroom": summary["headroom"] and left(summary["headroom"])}), flush=True)
                log.info("next: %s", _next(settings))
    return 0


def _next(settings: TrainConfig) -> str:
    beside = settings.out.parent
    places = ("--data", str(settings.data), "--models", str(beside), "--out", str(beside / "pipeline"))
    return cli.command("student-trainer", "pipeline", *places)


def open_inputs(settings: TrainConfig, ranks: Ranks, claimed: contextlib.ExitStack) -> Inputs:
    """Opens device and data of this rank; the first one claims OUT, while `claimed` is open, and reads its checkpoint.

    Raises:
        ConfigError: what the settings name is not there, not usable, in use, or too small for the ranks.
        CompatibilityError: OUT's run was trained on another store.
        FileFormatError: the store, or every checkpoint in OUT, is damaged, or there are no sampled trips.
    """
    use_threads(settings.runtime.threads)
    if settings.optim.batch_size < ranks.world:
        raise ConfigError(
            f"optim.batch_size {settings.optim.batch_size} is for all ranks together, and there are {ranks.world}"
        )
    device = pick_device(settings.runtime.device, ranks.local, ranks.world, "runtime.device")
    store = Store(settings.data)
    if not ranks.is_first:
        return Inputs(device, store, None)
    check_wandb(settings.log.wandb)
    claimed.enter_context(claims.directory(settings.out))
    if settings.batch.sampled is not None:
        read_document(settings.batch.sampled)  # before a teacher is waited for
    if settings.resume or settings.continue_to:
        claims.check(settings.out, "a run", is_run)
    return Inputs(device, store, find_checkpoint(settings, store))
