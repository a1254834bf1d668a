"""A student with the weights of a file: a run's checkpoint, or a bare `state_dict` as others publish it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from shared.errors import CompatibilityError, FileFormatError
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.model import students
from student_trainer.model.config import StudentConfig
from student_trainer.model.student import Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.layout import weights_in


def load_model(path: Path, store: Store) -> tuple[Student, TimeScale]:
    """A student with the weights of a file, ours or others', or the best of a run, on the store's network.

    A bare `state_dict` does not know how travel times were standardised; the store's training split does.

    Raises:
        FileFormatError: the file cannot be read, or is of no student that there is.
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
        config = _settings_of(path, loaded.config)
        weights, scale = loaded.model, TimeScale(loaded.mu, loaded.sigma)
    else:
        weights, config = values, _published(values)
    parts = students.architecture(config.name)
    model: Student = parts.build(config, network)
    parts.load(model, weights)
    return model.train(False), scale


def _settings_of(path: Path, settings: dict[str, Any]) -> StudentConfig:
    """The student's, in those of a run."""
    try:
        found: StudentConfig = students.settings_from(settings.get("model"))
        return found
    except pydantic.ValidationError as error:
        raise FileFormatError(f"{path} is damaged: its settings of the model: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise FileFormatError(f"{path}: its settings of the model: {error}") from None


def _published(weights: dict[str, Any]) -> StudentConfig:
    """The settings of the student that a bare `state_dict` is of."""
    reasons = []
    for name in filter(students.published, students.STUDENTS):
        public = students.architecture(name).public
        assert public is not None, f"{name} has a name for the file"
        try:
            return public.settings_of(weights)
        except FileFormatError as error:
            reasons.append(str(error))
    raise FileFormatError("; ".join(reasons))
