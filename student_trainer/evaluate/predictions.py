"""Next-road predictions of weights on a split, kept by what decides them: weights, store, split and cuts.

The same weights are evaluated again and again, with trips of other draws or searches; the forward passes over all
positions of the split are most of an evaluation's time, and their result is some megabytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from shared import files, provenance
from shared.store import SplitName, Store, Trips
from student_trainer.evaluate import next_road
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.evaluate.next_road import Positions

log = logging.getLogger(__name__)

FOLDER = "predictions"
"""Below the evaluation, unless another place is set."""


def of_weights(settings: EvaluateConfig, sha256: str, store: Store, split: SplitName, trips: Trips) -> Positions:
    """The predictions, from `settings.predictions` if they are there, and left there otherwise.

    Args:
        sha256: of the file of the weights.
        trips: all of the split.
    """
    folder = settings.out / FOLDER if settings.predictions is None else settings.predictions
    path = folder / f"{_key(settings, sha256, store, split)}.npz"
    kept = _read(path)
    if kept is not None:
        log.info("next-road predictions of these weights on %s are known: %s", split, path)
        return kept
    positions = predict(settings, store, trips)
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **vars(positions))
    return positions


def predict(settings: EvaluateConfig, store: Store, trips: Trips) -> Positions:
    """The predictions, made anew."""
    from student_trainer.model.device import use_threads  # torch takes seconds to import, and trips alone need none
    from student_trainer.predict.predictor import Predictor

    assert settings.weights is not None
    use_threads(settings.threads)
    predictor = Predictor.load(
        settings.weights,
        store,
        device=settings.device,
        candidate_top_k=settings.candidate_top_k,
        max_steps=settings.max_steps,
    )
    longer = np.flatnonzero(trips.lengths >= 2)
    arrays = predictor.positions(trips.take(longer), settings.batch_size)
    arrays["trip"] = longer[arrays["trip"]]
    return next_road.positions_of(arrays, trips)


def _key(settings: EvaluateConfig, sha256: str, store: Store, split: SplitName) -> str:
    """Of all that decides the predictions but the number of threads, which may move their last bits."""
    decides = settings.model_dump(mode="json", include={"candidate_top_k", "max_steps", "batch_size", "device"})
    source = provenance.source_digest(__name__)
    parts = [sha256, store.fingerprint, split, source, json.dumps(decides, sort_keys=True)]
    return files.digest(*parts)[:32]


def _read(path: Path) -> Positions | None:
    """What was kept; None if nothing was, or it is damaged."""
    names = [field.name for field in dataclasses.fields(Positions)]
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return Positions(**{name: arrays[name] for name in names})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); predicting again", path, error)
        return None
