"""The student on an accelerator that is not there: no mixed devices, and the host waits where it says it does."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cuda import CUDA, META, FakeCuda, HostWaits, Reads, Watch, lend_graph
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.recorders import Kept
from support.students import hoser_of, widths_of
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    unset_fake_temporarily,
)

from shared.store import Store
from shared.training.states import restore_optimizer
from shared.training.torch_ranks import ALONE, Ranks
from student_trainer.data import under_way
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import next_road
from student_trainer.model import device as devices
from student_trainer.model import hoser_parts, upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.predict import positions, predictor
from student_trainer.predict.config import CutConfig
from student_trainer.train import cuda_graphs, headroom
from student_trainer.train import session as sessions
from student_trainer.train.config import OptimConfig, TrainConfig
from student_trainer.train.destination_target import give_target
from student_trainer.train.optim import build_optimizer
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import Step, prepare_step
from student_trainer.train.session import Session
from student_trainer.train.trainer import Trainer

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 8, "accumulation": 2},
    "log": {"tensorboard": False, "progress": False},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


class Doubling(Ranks):
    """Two ranks that find the same gradients."""

    def __init__(self) -> None:
        super().__init__(0, 2, 0)

    def sums(self, *values: int) -> list[int]:
        return [2 * value for value in values]

    def sum_(self, tensor: torch.Tensor) -> None:
        assert tensor.device == CUDA
        tensor.mul_(2)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Stands in for the one function that waits for a device."""
    reads = Reads(1.0)
    monkeypatch.setattr(devices, "read", reads)
    return reads


def start(
    store: Store,
    out: Path,
    there: contextlib.AbstractContextManager[None],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    ranks: Ranks = ALONE,
    **changed: Any,
) -> Session:
    """A distilling session on a device without values; only the road graph, which is the host's, is real."""
    monkeypatch.setattr(sessions, "random_state", lambda _: {})
    settings = TrainConfig.model_validate({"data": store.path, "out": out, "teacher": "fake:1", **SMALL, **changed})
    network = RoadNetwork.load(store)
    model, head = HOSER(widths_of(settings.model), network), HistoryHead(widths_of(settings.model))
    monkeypatch.setattr(hoser_parts, "HOSER", lambda *_: model)  # made of real tensors; fakes cannot be moved
    monkeypatch.setattr(sessions, "HistoryHead", lambda *_: head)
    monkeypatch.setattr(sessions, "give_target", on_the_host)
    with there:
        session = Session(settings, store, Runtime.of(settings.runtime, device, ranks), FakeTeacher())
    lend_graph(model, network)
    return session


def on_the_host(*given: Any) -> None:
    """The fit reads batches before any is moved: of real tensors, whatever those of the session are."""
    with unset_fake_temporarily():
        give_target(*given)


def planned(session: Session) -> Step:
    ranks = session.runtime.ranks
    step = prepare_step(session.feed, session.model.graph, next(session.schedule.from_step(0)), ranks)
    assert (step.field is None) == (session.runtime.device == CUDA)  # the host looks for no neighbourhoods
    return step


@contextlib.contextmanager
def without_backward(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forward passes leave no graph, and a backward pass leaves gradients without having been made."""

    def backward(loss: torch.Tensor) -> None:
        assert (loss.device, loss.shape) == (CUDA, ())
        assert torch.backends.cuda.matmul.allow_tf32  # within a step, as `runtime.tf32` has it
        for parameter in trainer._parameters:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    with torch.no_grad():
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


FORMERLY = {"weight": 0.3, "target": "history", "head": 0, "schedule": "constant"}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"runtime": {"amp": "off", "graphs": "off"}, "distill": {"collisions": "duplicate", "temperature": 2.0}},
    "history": {
        "runtime": {"amp": "off", "graphs": "off"},
        "distill": {**FORMERLY, "collisions": "duplicate", "temperature": 2.0},
    },
    "float16": {"runtime": {"amp": "float16"}},
    "bfloat16": {"runtime": {"amp": "bfloat16", "graphs": "off"}, "model": {**SMALL["model"], "temporal": "time_emb"}},
}


@pytest.mark.parametrize("ranks", [ALONE, Doubling()], ids=["alone", "two ranks"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_on_cuda_waits_once(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: FakeCuda,
    reads: Reads,
    variant: str,
    ranks: Ranks,
) -> None:
    """Copies from pinned memory, forward, all losses, the scaler, clipping, AdamW: the norm is all that is read."""
    session = start(store, tmp_path, cuda.here(watched=False), CUDA, monkeypatch, ranks, **VARIANTS[variant])
    step = planned(session)  # as the prefetching thread does
    assert len(step.micro_batches) == 2
    with cuda.here(watched=False):
        hoser_of(session.model).graph.whole_on(CUDA)  # copied once, before the first step
    with cuda.here(), without_backward(session.trainer, monkeypatch):
        session.trainer.train_step(step)
        assert reads.by == ["Sums.read"]
        state = session.trainer.optimizer.state_dict()["state"]
        assert len(state) == len(session.trainer._parameters)
        assert {value.device for moments in state.values() for value in moments.values()} == {CUDA}
        metrics = session.trainer.take_metrics(1.0)
    assert len(reads.by) == 1  # metrics came along
    assert {"train/loss_kl", "train/loss_time", "train/gradient_norm", "train/teacher_entropy"} <= metrics.keys()
    is_aware = variant != "history"
    assert ("train/loss_head_kl" in metrics) == ("train/target_nll" in metrics) == is_aware
    assert cuda.watch.copies == 2 * (2 + is_aware)  # of each micro-batch, the teacher's answer to it, and the target's


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_a_recorded_step_on_cuda_copies_twice_and_reads_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, reads: Reads, amp: str
) -> None:
    """Its operations wait for nothing; when it is repeated, batch and answer are copied and one vector is read."""
    optim = {"epochs": 2, "batch_size": 8}
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", lambda _: Kept())
    session = start(
        store, tmp_path, cuda.here(watched=False), CUDA, monkeypatch, runtime={"amp": amp, "graphs": "on"}, optim=optim
    )
    assert session.trainer.graphs is not None
    step, optimizer = planned(session), session.trainer.optimizer

    def update() -> None:
        """Fakes of AdamW take no rate from a device."""
        there = {optimizer.param_groups[0]["lr"].device, optimizer.found_inf.device}  # type: ignore[attr-defined]
        assert there == {CUDA} and optimizer.param_groups[0]["capturable"]

    monkeypatch.setattr(optimizer, "step", update)
    with cuda.here(watched=False):
        hoser_of(session.model).graph.whole_on(CUDA)
    with cuda.here(), without_backward(session.trainer, monkeypatch):
        session.trainer.train_step(step)
        assert reads.by == ["_Recorded.read"] * 3  # single operations, their recording, the step
        copies = cuda.watch.copies
        session.trainer.train_step(step)
    assert cuda.watch.copies - copies == 2 and len(reads.by) == 4
    assert not session.trainer.graphs.is_off and session.progress.step == 1


def test_a_step_whose_scale_was_too_large_waits_once_more(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> None:
    """For the scale, which tells whether values overflowed or the run diverges."""
    scales = []
    monkeypatch.setattr(devices, "read", lambda values: [1.0, 0.0, torch.inf, *[1.0] * (len(values) - 3)])
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda _: scales.append(1) or 2.0)
    session = start(store, tmp_path, cuda.here(watched=False), CUDA, monkeypatch, runtime={"amp": "float16"})
    step = planned(session)
    with cuda.here(), without_backward(session.trainer, monkeypatch):
        session.trainer.train_step(step)
    assert (len(scales), session.progress.bad_steps, session.progress.step) == (1, 0, 1)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_a_step_on_the_meta_device_with_its_backward_pass(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads, checkpoint_blocks: bool
) -> None:
    """What fakes of CUDA lack where torch is built for CPUs only: autograd's own operations."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None)
    model = {**SMALL["model"], "checkpoint_blocks": checkpoint_blocks}
    here = contextlib.nullcontext()
    session = start(store, tmp_path, here, META, monkeypatch, runtime={"amp": "off"}, model=model)
    step = planned(session)
    with Watch():
        session.trainer.train_step(step)
    assert reads.by == ["Sums.read"]
    gradients = {p.grad.device for p in session.trainer._parameters if p.grad is not None}
    assert gradients == {META} and all(p.grad is not None for p in session.trainer._parameters)


def test_validation_on_cuda_waits_at_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, reads: Reads
) -> None:
    session = start(store, tmp_path, cuda.here(watched=False), CUDA, monkeypatch, runtime={"amp": "float16"})
    with cuda.here():
        metrics = session.validator.measure(session.model, session.trainer.head)
    assert reads.by == ["Sums.read"]
    assert {"accuracy", "nll", "time_error", "seconds_error", "kl", "head_kl", "agreement"} <= metrics.keys()


class Arrivals:
    """Stands in for `Fetching`: numbers at random on their way from the device, and what became of them in order."""

    said: list[str]

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device == CUDA and tensor.dtype == torch.float32
        self._shape = tuple(tensor.shape)
        self.said.append("asked")

    def values(self) -> np.ndarray:
        self.said.append("read")
        return np.random.default_rng(0).standard_normal(self._shape).astype(np.float32)


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to the numbers that batches leave."""
    monkeypatch.setattr(Arrivals, "said", [], raising=False)
    for module in (positions, headroom):
        monkeypatch.setattr(module, "Fetching", Arrivals)
    return Arrivals.said


def student_there(store: Store, cuda: FakeCuda) -> HOSER:
    network = RoadNetwork.load(store)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2), network).eval()
    with cuda.here(watched=False):
        model.to(CUDA)
    lend_graph(model, network)
    with cuda.here(watched=False):
        model.graph.whole_on(CUDA)
    return model


LATE = ["asked", *["asked", "read"] * 2, "read"]
"""Of three batches: what one leaves is read when the next has been given to the device."""


def test_predictions_on_cuda_are_read_one_batch_late(store: Store, cuda: FakeCuda, arrivals: list[str]) -> None:
    """As `predict`, `evaluate` and `tune` make them: one copy to the device a batch, one back."""
    trips, network, scale = store.trips("val"), RoadNetwork.load(store), TimeScale(*store.time_scale)
    model, cut = student_there(store, cuda), CutConfig(batch_size=-(-len(trips) // 3))
    with cuda.here():
        found = positions.predict(model, network, trips, scale, cut, CUDA)
    assert arrivals == LATE and cuda.watch.copies == 3
    assert len(found["trip"]) == int((trips.lengths - 1).sum()) and len(found["logit"]) == len(found["road"])
    assert next_road.positions_of(found, trips).confidence.max() <= 1


def test_answers_for_the_headroom_are_read_one_batch_late(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, arrivals: list[str]
) -> None:
    session = start(store, tmp_path, cuda.here(watched=False), CUDA, monkeypatch, **VARIANTS["float32"])
    graph = session.model.graph
    assert graph is not None
    with cuda.here(watched=False):
        graph.whole_on(CUDA)
    index = np.arange(6)
    items = [session.feed.prepare(part) for part in np.split(index, 3)]
    with cuda.here():
        found = headroom.answers_of(session.model, session.feed, items, CUDA)
    assert arrivals == LATE and cuda.watch.copies == 3
    assert found.trips == 6 and len(found.student) == found.choices.length.sum()


def test_a_question_on_cuda_is_one_copy_and_one_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> None:
    reads = []

    def fetch(tensor: torch.Tensor) -> np.ndarray:
        reads.append(tensor.device)
        return np.zeros(tuple(tensor.shape), np.float32)

    def build(*given: Any) -> under_way.PartialBatch:
        with unset_fake_temporarily():
            return under_way.build_partial(*given)

    monkeypatch.setattr(predictor, "fetch", fetch)
    monkeypatch.setattr(predictor, "build_partial", build)
    network = RoadNetwork.load(store)
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2), network)
    lend_graph(model, network)
    with cuda.here(watched=False):
        student = predictor.Predictor(model, store, network, TimeScale(1.0, 1.0), device=CUDA)
        assert student.last_step.key.device == CUDA
    with cuda.here():
        found = student.next_road([[3], [4]], [[1_704_715_200], [1_704_715_200]], np.array([5, 6]))
    assert reads == [CUDA] and cuda.watch.copies == 1
    assert all(one.probabilities.sum() == pytest.approx(1) for one in found if len(one.roads))


def test_weights_go_to_the_models_device(store: Store, cuda: FakeCuda) -> None:
    """Buffers, too, which are as long as the weights have them, and the optimizer's state, from a checkpoint's host."""
    network = RoadNetwork.load(store)
    config = ModelConfig(road_id_dim=8, road_attr_dim=2)
    fewer = dataclasses.replace(network, zone_edge_index=np.array([[0, 1], [1, 0]]), zone_edge_weight=np.ones(2, "f4"))
    source, model = HOSER(config, fewer), HOSER(config, network)
    optimizer = build_optimizer(OptimConfig(), source)
    for parameter in source.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with cuda.here(watched=False):
        model.to(CUDA)
        upstream.load_into(model, source.state_dict())
        ours = build_optimizer(OptimConfig(), model)
        restore_optimizer(ours, optimizer.state_dict())
        moments = [value for moments in ours.state_dict()["state"].values() for value in moments.values()]
        encoder = model.road_network_encoder
        assert {tensor.device for tensor in [*model.state_dict().values(), *moments, encoder.zone_adjacency]} == {CUDA}
    assert encoder.zone_edge_index.shape == (2, 2) and moments


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.cpu().numpy(),
    "cpu": lambda x: x.cpu(),
    "into the host's": lambda x: torch.zeros(3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask of the host": lambda x: x[torch.ones(3, dtype=torch.bool)],
    "index of the host": lambda x: x[torch.tensor([0, 1])],
    "mixed": lambda x: x + torch.ones(3),
    "repeat": lambda x: x.repeat_interleave(x.long()),
    "pageable": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "blocking": lambda x: torch.ones(3).pin_memory().to(x.device),
    "literal": lambda x: x.new_tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", READS)
def test_the_watch_sees_what_waits(cuda: FakeCuda, name: str, inference: bool) -> None:
    with (
        torch.inference_mode(inference),
        cuda.here(),
        pytest.raises((HostWaits, DataDependentOutputException, DynamicOutputShapeException)),
    ):
        READS[name](torch.ones(3, device=CUDA))


@pytest.mark.parametrize("name", sorted(READS.keys() - {"pageable", "blocking", "literal"}))
def test_the_watch_sees_what_waits_on_the_meta_device(name: str) -> None:
    with Watch(), pytest.raises((HostWaits, RuntimeError, NotImplementedError)):
        READS[name](torch.ones(3, device=META))


def test_the_watch_lets_pass_what_does_not_wait(cuda: FakeCuda) -> None:
    with cuda.here():
        x = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        assert (x * 2 + torch.tensor(1.0)).device == CUDA  # a number of the host is an argument of the kernel
        assert torch.where(x > 0, x, 0)[x.argsort()].device == CUDA
    assert cuda.watch.copies == 1
