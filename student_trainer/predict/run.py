"""`student-trainer predict`: weights + store -> every candidate's logit and travel time, as `.npz`."""

from __future__ import annotations

import json

import numpy as np

from shared import claims, files
from shared.errors import ConfigError
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.model.device import pick_device, use_threads
from student_trainer.model.weights import load_model
from student_trainer.predict.config import PredictConfig
from student_trainer.predict.positions import accuracy_of, predict


def run(settings: PredictConfig) -> int:
    """Predicts and writes; prints accuracy and where the file is as JSON on stdout."""
    if settings.out.suffix != ".npz":
        raise ConfigError(f"out must end in .npz, got {settings.out}")
    with claims.file(settings.out):
        return _run(settings)


def _run(settings: PredictConfig) -> int:
    use_threads(settings.threads)
    device = pick_device(settings.device)
    store = Store(settings.data)
    model, scale = load_model(settings.weights, store)
    trips = store.trips(settings.split, settings.cache)
    arrays = predict(model.to(device), RoadNetwork.load(store), trips, scale, settings, device)
    with files.atomic_path(settings.out) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    accuracy = accuracy_of(arrays)
    print(json.dumps({"out": str(settings.out), "positions": len(arrays["trip"]), "accuracy": accuracy}))
    return 0
