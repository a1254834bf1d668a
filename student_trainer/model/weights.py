"""A student with the weights of a file: a run's checkpoint, or a `state_dict` of public HOSER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from shared.errors import CompatibilityError, FileFormatError
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.layout import weights_in


def load_model(path: Path, store: Store) -> tuple[HOSER, TimeScale]:
    """A model with the weights of a file, ours or upstream's, or the best of a run, on the store's network.

    Upstream's `state_dict` does not know how travel times were standardised; the store's
    training split does.

    Raises:
        FileFormatError: the file cannot be read.
        CompatibilityError: the weights are of another network, or the checkpoint of another store.
    """
    network, path = RoadNetwork.load(store), weights_in(path)
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
