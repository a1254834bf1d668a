"""`student-trainer predict`: weights + store -> every candidate's logit and travel time, as `.npz`; or one trip's."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np

from shared import claims, files
from student_trainer.model.device import use_threads
from student_trainer.predict.config import PredictConfig
from student_trainer.predict.positions import accuracy_of
from student_trainer.predict.predictor import Predictor

log = logging.getLogger(__name__)


def run(settings: PredictConfig) -> int:
    """Predicts. Of a split writes, and prints accuracy and where the file is; of a trip prints its candidates.

    Both as JSON on stdout.
    """
    if settings.out is None:
        return _trip(settings)
    with claims.file(settings.out):
        return _split(settings, settings.out)


def _split(settings: PredictConfig, out: Path) -> int:
    predictor = _load(settings)
    arrays = predictor.positions(predictor.store.trips(settings.split, settings.cache), settings.batch_size)
    with files.atomic_path(out) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    accuracy = accuracy_of(arrays)
    print(json.dumps({"out": str(out), "positions": len(arrays["trip"]), "accuracy": accuracy}))
    return 0


def _trip(settings: PredictConfig) -> int:
    predictor, times = _load(settings), settings.times
    assert settings.destination is not None  # the schema demands it with a trip
    if len(times) < len(settings.trip):
        times = tuple(predictor.entry_times(settings.trip, times[0] if times else int(time.time())).tolist())
        clock = [f"{moment}Z" for moment in np.array(times, "M8[s]").astype(str)]
        log.info("the trip begins %s, and its roads are entered when the student expects it: times=%s",
                 "as given" if settings.times else "now, in UTC", ",".join(clock))  # fmt: skip
    found = predictor.next_road(settings.trip, times, settings.destination)
    answer = {
        "roads": found.roads.tolist(),
        "probabilities": found.probabilities.tolist(),
        "seconds": found.seconds.tolist(),
    }
    print(json.dumps(answer))
    return 0


def _load(settings: PredictConfig) -> Predictor:
    use_threads(settings.threads)
    return Predictor.load(
        settings.weights,
        settings.data,
        device=settings.device,
        candidate_top_k=settings.candidate_top_k,
        max_steps=settings.max_steps,
    )
