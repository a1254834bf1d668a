"""Features, embeddings, logits and times against outputs of the public HOSER."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reference_path
from support.students import hoser_of

from shared.store import Store
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.model import upstream
from student_trainer.model.weights import load_model
from student_trainer.predict.config import PredictConfig
from student_trainer.predict.positions import accuracy_of
from student_trainer.predict.run import run as run_predict
from student_trainer.prepare import run as prepare
from student_trainer.prepare.config import PrepareConfig
from student_trainer.runs import checkpoint as checkpoints

KINDS = ("freqs", "timeemb")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("city") / "store"
    prepare.run(PrepareConfig(raw=reference_path("hoser", "city"), out=out))
    return Store(out)


@pytest.fixture(params=KINDS)
def reference(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    with np.load(reference_path("hoser", f"reference_{request.param}.npz")) as arrays:
        yield request.param, dict(arrays)


@pytest.fixture
def batch(store: Store) -> Batch:
    return build_batch(RoadNetwork.load(store), store.trips("val"), np.arange(16))


def masks(reference: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Valid positions [B, T] and valid candidates [B, T, C]."""
    length, width = reference["trace_len"], reference["trace_road_id"].shape[1]
    valid = np.arange(width) < length[:, None]
    slots = np.arange(reference["candidate_road_id"].shape[2])
    return valid, valid[..., None] & (slots < reference["candidate_len"][..., None])


def test_features(reference: tuple[str, dict[str, np.ndarray]], batch: Batch, store: Store) -> None:
    _, expected = reference
    valid, candidates = masks(expected)
    for ours, theirs in {
        "road": expected["trace_road_id"],
        "length": expected["trace_len"],
        "destination": expected["destination_road_id"],
        "candidate_length": expected["candidate_len"][valid],
        "candidate_road": expected["candidate_road_id"][candidates],
        "label": expected["road_label"][valid],
    }.items():
        np.testing.assert_array_equal(getattr(batch, ours).numpy(), theirs, err_msg=ours)
    for ours, theirs in {
        "temporal": expected["temporal_info"],
        "distance": np.tril(expected["trace_distance_mat"]),  # of the steps that a step may attend to
        "interval": np.tril(expected["trace_time_interval_mat"]),
        "candidate_distance": expected["metric_dis"][candidates],
        "candidate_angle": expected["metric_angle"][candidates],
    }.items():
        actual = getattr(batch, ours).numpy()
        assert actual.dtype == theirs.dtype
        np.testing.assert_allclose(actual, theirs, atol=1e-6, rtol=1e-6, err_msg=ours)
    statistics = store.manifest["statistics"]
    standardised = (np.log1p(batch.seconds.numpy()) - statistics["mu"]) / statistics["sigma"]
    np.testing.assert_allclose(standardised, expected["timestamp_label"][valid], atol=1e-6, rtol=1e-6)


def test_embeddings_logits_and_times(reference: tuple[str, dict[str, np.ndarray]], batch: Batch, store: Store) -> None:
    kind, expected = reference
    valid, candidates = masks(expected)
    model, _ = load_model(reference_path("hoser", f"hoser_{kind}.pth"), store)
    with torch.inference_mode():
        embedding = model.embed_network()
        output = model(batch, embedding)
        times = model.candidate_times(batch, embedding, output)
        label_times = model.label_times(batch, embedding, output)
    np.testing.assert_allclose(embedding.road.numpy(), expected["road_embedding"], atol=1e-4)
    np.testing.assert_allclose(embedding.zone.numpy(), expected["zone_embedding"], atol=1e-4)
    np.testing.assert_allclose(output.logits[batch.layout.exists].numpy(), expected["logits"][candidates], atol=1e-4)
    np.testing.assert_allclose(times.numpy(), expected["time_pred"][candidates], atol=1e-4)
    of_label = np.take_along_axis(expected["time_pred"], expected["road_label"][..., None], axis=2)[..., 0]
    np.testing.assert_allclose(label_times.numpy(), of_label[valid], atol=1e-4)


def test_predict_reaches_what_upstream_measured(
    reference: tuple[str, dict[str, np.ndarray]], store: Store, tmp_path: Path
) -> None:
    """`predict` on the test split: upstream's own loop measured the same accuracy."""
    kind, expected = reference
    out = tmp_path / "p.npz"
    settings = PredictConfig(
        data=store.path, weights=reference_path("hoser", f"hoser_{kind}.pth"), split="test", out=out
    )
    run_predict(settings)
    with np.load(out) as file:
        arrays = dict(file)
    assert accuracy_of(arrays) == pytest.approx(float(expected["test_next_step_acc"]), abs=1e-9)
    start, label = arrays["candidate_offsets"][:-1], arrays["label"]
    scale = store.manifest["statistics"]
    log_seconds = arrays["log1p_seconds_standardised"][start + label] * scale["sigma"] + scale["mu"]
    trips = store.trips("test")
    true = np.log1p(
        np.concatenate([np.diff(trips.times[a:b]) for a, b in zip(trips.offsets, trips.offsets[1:], strict=False)])
    )
    error = np.mean(np.abs(log_seconds - true) / np.maximum(true, 1))
    assert error == pytest.approx(float(expected["test_time_error"]), abs=1e-5)


def test_export_is_what_upstream_stores(reference: tuple[str, dict[str, np.ndarray]], store: Store) -> None:
    """Weights go in and come out unchanged: the same names, shapes, dtypes and values, masks included."""
    kind, _ = reference
    path = reference_path("hoser", f"hoser_{kind}.pth")
    model, _ = load_model(path, store)
    theirs, ours = checkpoints.load_tensors(path), upstream.export(hoser_of(model))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype, name
        assert torch.equal(tensor, ours[name]), name


def test_compiled_names_are_accepted(store: Store) -> None:
    path = reference_path("hoser", "hoser_freqs.pth")
    weights = checkpoints.load_tensors(path)
    prefixed = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    assert upstream.normalise(prefixed).keys() == upstream.normalise(weights).keys()
