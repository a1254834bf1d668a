"""What the teacher of a run could still teach its student; `evaluate.headroom` has the arithmetic.

Measured once, when the run is done: on some of the validation trips, whose answers validation has kept, with the best
weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from shared.errors import ReportableError, TrainingError
from student_trainer.data.batch import Batch
from student_trainer.data.loader import one_late
from student_trainer.distill.conditional_logit import Choices
from student_trainer.distill.destination import choices_of, features_at_hand
from student_trainer.evaluate import headroom
from student_trainer.evaluate.config import BootstrapConfig
from student_trainer.evaluate.headroom import Answers
from student_trainer.model.device import Fetching, float32_products
from student_trainer.model.student import NetworkEmbedding, Student
from student_trainer.train.feed import Feed, Prepared
from student_trainer.train.validate import Validator

log = logging.getLogger(__name__)

TRIPS = 2_000
"""Validation trips that are enough at the end of a run."""
RESAMPLING = BootstrapConfig(draws=1_000)
SEED = 0
"""Of the halves of the trips: no setting, so that runs share them."""


@torch.no_grad()
def answers_of(model: Student, feed: Feed, items: Iterable[Prepared], device: torch.device) -> Answers:
    """What a student and the teacher say about batches of the feed's trips, by ascending trip.

    Products are of float32 without TF32, as in `predict`.

    Raises:
        TeacherError: the teacher has failed.
        TrainingError: there is no batch.
    """
    parts, student, trip = [], [], []
    was_training = model.training
    model.train(False)
    with float32_products(device, tf32=False):
        network = model.embed_network()
        asked = ((item, _logits(model, network, item.on(device))) for item in items)
        for item, fetching in one_late(asked):
            reply = item.answer("wait")
            assert reply is not None, "the feed asks"
            features = feed.features(item.batch) if feed.has_ways else features_at_hand(item.batch)
            parts.append(choices_of(item.batch, features, reply.log_probs))
            student.append(fetching.values())
            trip.append(np.repeat(item.batch.trips.numpy(), item.batch.length.numpy()))
    model.train(was_training)
    if not parts:
        raise TrainingError("there are no trips to measure the headroom on")
    _, number = np.unique(np.concatenate(trip), return_inverse=True)
    return Answers(Choices.joined(parts), np.concatenate(student).astype(np.float64), number)


def _logits(model: Student, network: NetworkEmbedding, batch: Batch) -> Fetching:
    """Of the candidates, float32 [K], on their way to the host."""
    return Fetching(model(batch, network).logits[batch.layout.position, batch.layout.column])


def of_run(
    model: Student, feed: Feed, validator: Validator, device: torch.device, labelled_trips: int
) -> dict[str, Any] | None:
    """The headroom of a finished run, as JSON; None, and a warning why, if it cannot be measured.

    Args:
        model: with the best weights.
        feed: of the validation trips.
        validator: of the same trips.
        device: of the model.
        labelled_trips: that it was trained on.
    """
    try:
        answers = answers_of(model, feed, validator.some_of(TRIPS), device)
        found = headroom.measure(answers, SEED, RESAMPLING, labelled_trips)
    except ReportableError as error:  # a run that is done is not lost for it
        log.warning("the headroom was not measured: %s", error)
        return None
    log.info("%s (an estimate; see docs/metrics.md)", found["sentence"])
    return found
