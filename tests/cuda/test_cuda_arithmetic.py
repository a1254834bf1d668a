"""The accelerator computes what the CPU computes, and what the public code computed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reference_path
from support.accelerator import session_of, settings_of
from support.random_city import write_random_store
from support.students import hoser_of

from benchmarks.gpu import teachers
from benchmarks.gpu.size import TOY
from shared.store import Store
from student_trainer.data.batch import build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import to_device
from student_trainer.model import device as devices
from student_trainer.model.weights import load_model
from student_trainer.prepare.config import PrepareConfig
from student_trainer.train.meters import Sums
from student_trainer.train.schedule import prepare_step
from student_trainer.train.session import Session

pytestmark = pytest.mark.cuda

HALF_ROUNDING = 0.03
"""Of a log-probability that a model in float16 has computed."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def session_on(device: torch.device, store: Store, out: Path, amp: str = "off", graphs: str = "auto") -> Session:
    return session_of(settings_of(store, out, device, runtime={"amp": amp, "graphs": graphs}), store)


def gradients_on(device: torch.device, store: Store, out: Path, amp: str = "off") -> torch.Tensor:
    """Of the first step, as one vector in float64 on the CPU."""
    session = session_on(device, store, out, amp)
    step = prepare_step(session.feed, session.model.graph, next(session.schedule.from_step(0)))
    assert bool(session.trainer.compute_gradients(step, Sums()))
    parts = [p.grad.flatten() for p in session.model.parameters() if p.grad is not None]
    return torch.cat(parts).double().cpu() / session.runtime.precision.scaler.get_scale()


def test_the_engine_against_the_public_code(accelerator: torch.device, tmp_path: Path) -> None:
    path = teachers.exported(reference_path("lmtad", "training_checkpoint.pt"), tmp_path / "teacher")
    scorer = teachers.load(path, accelerator, TOY)
    with np.load(reference_path("lmtad", "reference.npz")) as file:
        reference = dict(file)
    sot = scorer.served.header.tokeniser.vocabulary.sot
    rows = zip(reference["history"], reference["history_length"], strict=True)
    contexts = [[sot, *row[:length].tolist()] for row, length in rows]
    candidates = [3, 14, 15, 92, 65]
    found = teachers.scores(scorer, contexts, candidates)
    logits = reference["last_logits"].astype(np.float64)
    chosen = logits[:, candidates]
    expected = chosen - np.logaddexp.reduce(chosen, axis=1, keepdims=True)
    np.testing.assert_allclose(found.log_probs.reshape(-1, 5).astype(np.float64), expected, atol=HALF_ROUNDING)
    mass = np.exp(chosen - np.logaddexp.reduce(logits, axis=1, keepdims=True)).sum(1)
    np.testing.assert_allclose(found.candidate_mass.astype(np.float64), mass, atol=HALF_ROUNDING)


@pytest.fixture(scope="module")
def hoser_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    if pack := os.environ.get("GPU_PACK"):  # a machine that lacks what preparing needs
        return Store(Path(pack, "hoser_store"))
    from student_trainer.prepare import run as prepare

    out = tmp_path_factory.mktemp("city") / "store"
    prepare.run(PrepareConfig(raw=reference_path("hoser", "city"), out=out))
    return Store(out)


@pytest.mark.parametrize("kind", ["freqs", "timeemb"])
def test_the_student_against_the_public_code(accelerator: torch.device, hoser_store: Store, kind: str) -> None:
    with np.load(reference_path("hoser", f"reference_{kind}.npz")) as file:
        expected = dict(file)
    model, _ = load_model(reference_path("hoser", f"hoser_{kind}.pth"), hoser_store)
    batch = build_batch(RoadNetwork.load(hoser_store), hoser_store.trips("val"), np.arange(16))
    slots = np.arange(expected["candidate_road_id"].shape[2])
    valid = np.arange(expected["trace_road_id"].shape[1]) < expected["trace_len"][:, None]
    exists = valid[..., None] & (slots < expected["candidate_len"][..., None])
    model.to(accelerator)
    with torch.inference_mode():
        there = to_device(batch, accelerator)
        embedding = model.embed_network()
        output = model(there, embedding)
        times = model.candidate_times(there, embedding, output)
    np.testing.assert_allclose(embedding.road.cpu().numpy(), expected["road_embedding"], atol=1e-4)
    np.testing.assert_allclose(output.logits.cpu()[batch.layout.exists].numpy(), expected["logits"][exists], atol=1e-4)
    np.testing.assert_allclose(times.cpu().numpy(), expected["time_pred"][exists], atol=1e-4)


@pytest.mark.parametrize(("amp", "most"), [("off", 1e-4), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_a_step_against_the_cpu(accelerator: torch.device, store: Store, tmp_path: Path, amp: str, most: float) -> None:
    """Gradients of the first step: relative difference of the whole vector from float32 on the CPU."""
    expected = gradients_on(torch.device("cpu"), store, tmp_path / "a")
    found = gradients_on(accelerator, store, tmp_path / "b", amp)
    assert len(found) == len(expected)
    assert float((found - expected).norm() / expected.norm()) < most


def test_an_overflow_skips_the_update(accelerator: torch.device, store: Store, tmp_path: Path) -> None:
    session = session_on(accelerator, store, tmp_path / "run", "float16")
    session.runtime.precision.scaler = torch.amp.GradScaler(accelerator.type, init_scale=2.0**120)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    steps = session.schedule.from_step(0)
    session.trainer.train_step(prepare_step(session.feed, session.model.graph, next(steps)))
    assert session.runtime.precision.scaler.get_scale() < 2.0**120
    assert all(torch.equal(before[name], tensor) for name, tensor in session.model.state_dict().items())
    assert session.progress.bad_steps == 0
    session.runtime.precision.scaler = torch.amp.GradScaler(accelerator.type)
    session.trainer.train_step(prepare_step(session.feed, session.model.graph, next(steps)))
    after = hoser_of(session.model).navigator.q_proj.weight
    assert not torch.equal(before["navigator.q_proj.weight"], after)


@pytest.mark.parametrize("amp", ["off", "float16", "bfloat16"])
def test_nothing_in_a_step_waits_for_the_device(cuda: torch.device, store: Store, tmp_path: Path, amp: str) -> None:
    """Forward, loss and backward; the update reads one flag."""
    session = session_on(cuda, store, tmp_path / "run", amp)
    steps = [
        prepare_step(session.feed, session.model.graph, planned) for planned in list(session.schedule.from_step(0))[:2]
    ]
    session.trainer.train_step(steps[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.trainer.compute_gradients(steps[1], Sums())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("amp", "most"), [("off", 1e-5), ("bfloat16", 1e-2)])
def test_recorded_steps_are_those_of_single_operations(
    cuda: torch.device, store: Store, tmp_path: Path, amp: str, most: float
) -> None:
    """After three steps: relative difference of what has changed of all weights, and of the losses."""
    changes, losses = [], []
    for graphs in ("on", "off"):
        session = session_on(cuda, store, tmp_path / graphs, amp, graphs)
        before = torch.cat([p.detach().flatten().double() for p in session.model.parameters()])
        for planned in itertools.islice(session.schedule.from_step(0), 3):
            session.trainer.train_step(prepare_step(session.feed, session.model.graph, planned))
        after = torch.cat([p.detach().flatten().double() for p in session.model.parameters()])
        changes.append(after - before)
        losses.append(session.trainer.take_metrics(1.0)["train/loss"])
        assert (session.trainer.graphs is not None) == (graphs == "on") and session.progress.bad_steps == 0
    assert losses[0] == pytest.approx(losses[1], rel=most)
    assert float((changes[0] - changes[1]).norm() / after.norm()) < most


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_a_recorded_step_waits_for_its_result_alone(
    cuda: torch.device, store: Store, tmp_path: Path, amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_on(cuda, store, tmp_path / "run", amp, "on")
    step = prepare_step(session.feed, session.model.graph, next(session.schedule.from_step(0)))
    session.trainer.train_step(step)
    read, reads = devices.read, []

    def allowed(tensor: torch.Tensor) -> list[float]:
        torch.cuda.set_sync_debug_mode("default")
        reads.append(len(tensor))
        return read(tensor)

    monkeypatch.setattr(devices, "read", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.trainer.train_step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == 1


def test_gathered_rows_have_the_same_gradient_every_time(cuda: torch.device) -> None:
    """In bits, for few rows and many, of which some are read a thousand times."""
    for count in (2_000, 9_000):
        index = torch.randint(0, 50, (count,), device=cuda)
        grad = torch.randn(count, 128, device=cuda)
        found = []
        for _ in range(5):
            table = torch.randn(700, 128, device=cuda, requires_grad=True)
            devices.rows(table, index).backward(grad)
            assert table.grad is not None
            found.append(table.grad)
        assert all(torch.equal(found[0], other) for other in found[1:])
        expected = torch.zeros(700, 128, device=cuda, dtype=torch.float64).index_add(0, index, grad.double())
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-3)
