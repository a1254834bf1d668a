"""`student-trainer predict`: weights + store -> every candidate's logit and travel time, as `.npz`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import torch
import tqdm

from shared import files, ragged
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store, Trips
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.loader import by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.predict_config import PredictConfig as PredictConfig
from student_trainer.train import checkpoint as checkpoints
from student_trainer.train.loss import TimeScale
from student_trainer.train.optim import pick_device

log = logging.getLogger(__name__)


def run(settings: PredictConfig) -> int:
    """Predicts and writes; prints accuracy and where the file is as JSON on stdout."""
    if settings.out.suffix != ".npz":
        raise ConfigError(f"out must end in .npz, got {settings.out}")
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


def load_model(path: Path, store: Store) -> tuple[HOSER, TimeScale]:
    """A model with the weights of a file, ours or upstream's, on the store's network.

    Upstream's `state_dict` does not know how travel times were standardised; the store's
    training split does.

    Raises:
        FileFormatError: the file cannot be read.
        CompatibilityError: the weights are of another network, or the checkpoint of another store.
    """
    network = RoadNetwork.load(store)
    values = checkpoints.load_tensors(path)
    scale = TimeScale(*store.time_scale)
    if checkpoints.is_checkpoint(values):
        loaded = checkpoints.load(path)
        if loaded.store != store.fingerprint:
            raise CompatibilityError(
                f"{path} was trained on another store than {store.path}; prepare it as it was then"
            )
        config = _model_config(path, loaded.config)
        weights, scale = loaded.model, TimeScale(loaded.mu, loaded.sigma)
    else:
        weights, config = values, upstream.infer_config(values)
    model = HOSER(config, network)
    upstream.load_into(model, weights)
    return model.eval(), scale


def _model_config(path: Path, settings: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(settings.get("model"))
    except pydantic.ValidationError as error:
        raise FileFormatError(f"{path} is damaged: its settings of the model: {error.errors()[0]['msg']}") from None


@torch.inference_mode()
def predict(
    model: HOSER, network: RoadNetwork, trips: Trips, scale: TimeScale, settings: PredictConfig, device: torch.device
) -> dict[str, npt.NDArray]:
    """Predictions of P positions with K candidates, in the split's order.

    Returns:
        trip, step: int64 [P]; label: int64 [P], index among the candidates (-100 if cut off);
        candidate_offsets: int64 [P + 1]; road: int64 [K]; logit, seconds,
        log1p_seconds_standardised: float32 [K].
    """
    embedding = model.embed_network()
    parts: list[dict[str, npt.NDArray]] = []
    for index in tqdm.tqdm(by_length(trips.lengths, settings.batch_size), unit="batch", disable=None):
        batch = build_batch(network, trips, index, settings.candidate_top_k, settings.max_steps)
        moved = batch.to(device)
        output = model(moved, embedding)
        times = model.candidate_times(moved, embedding, output).cpu().numpy()
        parts.append(
            {
                **_places(batch, trips, index),
                "candidate_length": batch.candidate_length.numpy(),
                "label": batch.label.numpy(),
                "road": batch.candidate_road.numpy(),
                "logit": output.logits.cpu().numpy()[batch.layout.exists.numpy()],
                "seconds": np.expm1(times * scale.sigma + scale.mu).clip(min=0).astype(np.float32),
                "log1p_seconds_standardised": times,
            }
        )
    return _in_order({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _places(batch: Batch, trips: Trips, index: npt.NDArray[np.int64]) -> dict[str, npt.NDArray]:
    kept = batch.length.numpy()
    first_step = trips.lengths[index] - 1 - kept
    return {"trip": np.repeat(index, kept), "step": ragged.positions(kept) + np.repeat(first_step, kept)}


def _in_order(arrays: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
    """Sorts the positions by trip and step, and their candidates with them."""
    length = arrays.pop("candidate_length")
    start = ragged.offsets(length)[:-1]
    order = np.lexsort((arrays["step"], arrays["trip"]))
    candidate = ragged.slices(start[order], length[order])
    per_position = {name: arrays[name][order] for name in ("trip", "step", "label")}
    per_candidate = {name: arrays[name][candidate] for name in arrays if name not in per_position}
    return {**per_position, "candidate_offsets": ragged.offsets(length[order]), **per_candidate}


def accuracy_of(arrays: dict[str, npt.NDArray]) -> float:
    """Share of positions whose first most likely candidate is the next road."""
    offsets, label = arrays["candidate_offsets"], arrays["label"]
    length = np.diff(offsets)
    best = np.maximum.reduceat(arrays["logit"], offsets[:-1])
    is_best = arrays["logit"] == np.repeat(best, length)
    slot = np.where(is_best, ragged.positions(length), np.iinfo(np.int64).max)
    return float(np.mean(np.minimum.reduceat(slot, offsets[:-1]) == label))
