"""Next-road predictions are made once for the same weights, and again for whatever decides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.random_city import write_random_store

from shared import files
from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import predictions
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.runs import checkpoint as checkpoints


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store", trips=60)


def weights_of(store: Store, path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), RoadNetwork.load(store))
    checkpoints.save_tensors(path, upstream.export(model))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the model was run over the split."""
    calls: list[int] = []
    before = predictions.predict

    def counted(*given: Any) -> Any:
        calls.append(1)
        return before(*given)

    monkeypatch.setattr(predictions, "predict", counted)
    return calls


def test_the_same_weights_are_asked_once(tmp_path: Path, store: Store, made: list[int]) -> None:
    weights = weights_of(store, tmp_path / "w.pth")
    values = {"data": store.path, "trips": tmp_path / "t", "out": tmp_path / "e", "weights": weights, "threads": 1}
    settings = EvaluateConfig.model_validate(values)
    trips = store.trips("val")

    def positions(**other: Any) -> Any:
        asked = settings.model_copy(update=other)
        assert asked.weights is not None
        return predictions.of_weights(asked, files.file_digest(asked.weights), store, "val", trips)

    first, again = positions(), positions(bins=3, out=settings.out)
    assert len(made) == 1
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
        assert value.dtype == getattr(again, name).dtype
    positions(max_steps=2)
    positions(weights=weights_of(store, tmp_path / "other.pth", seed=1))
    positions(predictions=tmp_path / "elsewhere")
    assert len(made) == 4
    assert len(list((tmp_path / "e" / "predictions").iterdir())) == 3
    (kept,) = (tmp_path / "elsewhere").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(positions(predictions=tmp_path / "elsewhere").nll_nats, first.nll_nats)
    assert len(made) == 5, "what is damaged is made again"


def test_threads_are_torchs(tmp_path: Path, store: Store) -> None:
    before = torch.get_num_threads()
    values = {"data": store.path, "trips": tmp_path / "t", "out": tmp_path / "e", "threads": before + 1}
    settings = EvaluateConfig.model_validate(values | {"weights": weights_of(store, tmp_path / "w.pth")})
    try:
        predictions.predict(settings, store, store.trips("val"))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
