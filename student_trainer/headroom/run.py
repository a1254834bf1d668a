"""`student-trainer headroom`: store + teacher + weights -> what the teacher could still teach, as JSON on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from shared import subset
from shared.arrays import Float64, Int64
from shared.errors import ConfigError
from shared.store import Store, Trips
from student_trainer.data.loader import Prefetcher, by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.distill import conditional_logit
from student_trainer.distill.destination import FEATURES, DestinationTarget
from student_trainer.distill.teacher import Teacher
from student_trainer.evaluate import headroom
from student_trainer.headroom.config import HeadroomConfig
from student_trainer.model.device import pick_device
from student_trainer.model.weights import load_model
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.checkpoint import Checkpoint
from student_trainer.runs.layout import RunFiles
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import connect
from student_trainer.train.feed import Feed
from student_trainer.train.fit import labelled_choices, some_of
from student_trainer.train.headroom import answers_of
from student_trainer.train.resume import TARGET, target_of

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
    store, weights = Store(settings.data), weights_of(settings.weights)
    device = pick_device(settings.device)
    model, _ = load_model(weights, store)
    trained = _trained(weights)
    recipe = _recipe(settings, trained)
    with contextlib.closing(connect(recipe, store)) as teacher:
        scene = _Scene(store, RoadNetwork.load(store), recipe, teacher)
        trips = store.trips(settings.split, settings.cache)
        chosen = subset.choose(trips, settings.trips, settings.seed, "trips", settings.split)
        log.info("asking the teacher about %d trips of %s", len(chosen), settings.split)
        feed = scene.feed(trips, chosen)
        batches = [chosen[index] for index in by_length(trips.lengths[chosen], BATCH)]
        with Prefetcher(feed.prepare, batches, settings.client.lookahead) as items:
            answers = answers_of(model.to(device), feed, items, device)
        count, target, features = _fitted(scene, trained)
        revision = teacher.revision
    found = headroom.measure(answers, settings.seed, settings.bootstrap, count, target, features)
    about = {"weights": str(weights), "teacher": settings.teacher, "teacher_revision": revision}
    return {**about, "split": settings.split, "window": recipe.distill.window, **found}


def weights_of(path: Path) -> Path:
    """The file of weights that a path means: of a run's directory its best ones."""
    return RunFiles(path).best if path.is_dir() else path


@dataclasses.dataclass(frozen=True, eq=False)
class _Scene:
    """What every question is about."""

    store: Store
    network: RoadNetwork
    recipe: TrainConfig
    teacher: Teacher

    def feed(self, trips: Trips, chosen: Int64) -> Feed:
        """Of a split's trips, with the ways of those that are chosen."""
        feed = Feed(self.network, trips, self.recipe, self.teacher, pick_device("cpu"))
        feed.measure_ways(self.store.network("length"), chosen, progress=True)
        return feed


def _trained(weights: Path) -> Checkpoint | None:
    """The checkpoint that the weights are in, if they are in one of ours."""
    return checkpoints.load(weights) if checkpoints.is_checkpoint(checkpoints.load_tensors(weights)) else None


def _recipe(settings: HeadroomConfig, trained: Checkpoint | None) -> TrainConfig:
    """What a run would be that asks as the student's did, about all successors."""
    known: dict[str, Any] = {} if trained is None else trained.config
    distill, batch = known.get("distill", {}), known.get("batch", {})
    window = _first(settings.window, distill.get("window"), 4)
    chosen = {
        "train_trips": _first(settings.train_trips, batch.get("train_trips"), 0),
        "sample_seed": _first(settings.sample_seed, batch.get("sample_seed"), 0),
    }
    return TrainConfig.model_validate(
        {
            "data": settings.data,
            "teacher": settings.teacher,
            "client": settings.client,
            "out": settings.weights,
            "distill": {"weight": 1.0, "target": "destination", "window": window},
            "batch": {"cache": settings.cache, "candidate_top_k": 0, **chosen},
        }
    )


def _first(*values: int | None) -> int:
    """The first that is given."""
    return next(value for value in values if value is not None)


def _fitted(scene: _Scene, trained: Checkpoint | None) -> tuple[int, Float64, Float64]:
    """How many labelled trips there are; coefficients of the target and of the features alone, fitted on them.

    The target is that of the run if it was distilled from this teacher with one.

    Raises:
        ConfigError: the store has none.
    """
    batch = scene.recipe.batch
    trips = scene.store.trips("train", batch.cache)
    index = subset.choose(trips, batch.train_trips, batch.sample_seed, "train_trips", "training")
    if not len(index):
        raise ConfigError(f"the store {scene.store.path} has no training trips to fit the target on")
    chosen = some_of(index, batch.sample_seed)
    log.info("fitting the destination-aware target on %d labelled trips", len(chosen))
    choices = labelled_choices(scene.feed(trips, chosen), chosen)
    own = len(FEATURES) - len(headroom.WITHOUT_TEACHER)
    alone = conditional_logit.fit(dataclasses.replace(choices, features=choices.features[:, own:]))
    is_its_own = trained is not None and trained.teacher_revision == scene.teacher.revision
    if trained is not None and is_its_own and TARGET in trained.distillation:
        target = target_of(trained)
    else:
        target, _ = DestinationTarget.fitted(choices)
    log.info("destination-aware target: %s", target)
    return len(index), np.asarray(target.coefficients), alone.coefficients
