"""`student-trainer headroom`: store + teacher + weights -> what the teacher could still teach, as JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from shared import subset
from shared.store import Store
from student_trainer.data.loader import Prefetcher, by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import headroom
from student_trainer.headroom.config import HeadroomConfig
from student_trainer.model.device import pick_device
from student_trainer.model.weights import load_model
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import connect
from student_trainer.train.feed import Feed
from student_trainer.train.headroom import answers_of

log = logging.getLogger(__name__)

BATCH = 64
"""Trips of a forward pass."""


def run(settings: HeadroomConfig) -> int:
    """Measures; prints the numbers as JSON on stdout, and says what they mean.

    Raises:
        CompatibilityError: the teacher or the weights do not fit the store.
        ConfigError: there are fewer trips than wanted.
        FileFormatError: the weights cannot be read.
        TeacherError: the teacher does not answer.
        TrainingError: the trips leave no choice.
    """
    found = measure(settings)
    for line in (found["sentence"], *found["hints"]):
        log.info(line)
    print(json.dumps(found))
    return 0


def measure(settings: HeadroomConfig) -> dict[str, Any]:
    """The numbers, as `evaluate.headroom.measure` has them, and what they are of; raises as `run`."""
    store, weights = Store(settings.data), settings.weights
    device = pick_device(settings.device)
    model, _ = load_model(weights, store)
    trained = _trained(weights)
    recipe = _recipe(settings, trained)
    trips, labelled = (store.trips(split, settings.cache) for split in (settings.split, "train"))
    chosen = subset.draw(len(trips), settings.trips or len(trips), settings.seed)
    learned = len(subset.choose(labelled, recipe.batch.train_trips, 0, "train_trips", "training"))
    with contextlib.closing(connect(recipe, store)) as teacher:
        feed = Feed(RoadNetwork.load(store), trips, recipe, teacher, pick_device("cpu"))
        feed.measure_ways(store.network("length"), chosen, progress=True)
        log.info("asking the teacher about %d trips of %s", len(chosen), settings.split)
        batches = [chosen[index] for index in by_length(trips.lengths[chosen], BATCH)]
        with Prefetcher(feed.prepare, batches, settings.client.lookahead) as items:
            answers = answers_of(model.to(device), feed, items, device)
        revision = teacher.revision
    found = headroom.measure(answers, settings.seed, settings.bootstrap, learned)
    about = {"weights": str(weights), "teacher": settings.teacher, "teacher_revision": revision}
    return {**about, "split": settings.split, "window": recipe.distill.window, **found}


def _trained(weights: Path) -> Checkpoint | None:
    """The checkpoint that the weights are in, if they are in one of ours."""
    return checkpoints.load(weights) if checkpoints.is_checkpoint(checkpoints.load_tensors(weights)) else None


def _recipe(settings: HeadroomConfig, trained: Checkpoint | None) -> TrainConfig:
    """What a run would be that asks as the student's did, about all successors."""
    known: dict[str, Any] = {} if trained is None else trained.config
    distill, batch = known.get("distill", {}), known.get("batch", {})
    window = _first(settings.window, distill.get("window"), 4)
    labelled = _first(settings.train_trips, batch.get("train_trips"), 0)
    return TrainConfig.model_validate(
        {
            "data": settings.data,
            "teacher": settings.teacher,
            "client": settings.client,
            "out": settings.weights,
            "distill": {"weight": 1.0, "target": "destination", "window": window},
            "batch": {"cache": settings.cache, "candidate_top_k": 0, "train_trips": labelled},
        }
    )


def _first(*values: int | None) -> int:
    """The first that is given."""
    return next(value for value in values if value is not None)
