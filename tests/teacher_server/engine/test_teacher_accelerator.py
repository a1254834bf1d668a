"""The teacher on a GPU that is not there: every kind of tile, no mixed devices, no wait but for the answer."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from support.fake_cuda import CUDA, META, FakeCuda, Watch
from support.plans import plan_of
from test_teacher_engine import CPU, MODEL, VOCABULARY, _batch, make_engine, make_query, random_windows

from shared.errors import ConfigError
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.engine import calibrate
from teacher_server.engine.accelerated import Accelerated
from teacher_server.engine.cuda_graphs import Graphs
from teacher_server.engine.engine import Engine
from teacher_server.engine.shapes import Kind
from teacher_server.engine.streams import Direct, Memory, Streams
from teacher_server.engine.transfer import Receiver
from teacher_server.lmtad.device import find_device
from teacher_server.scorer import Batch

ROWS = random_windows(60)


def all_kinds(mass: bool) -> list[ScoreQuery]:
    """Short windows (trees), long ones scored at their ends, and trips scored at every place."""
    windows = make_query(HistoryMode.WINDOW, ROWS, [[1, 2, 3]] * len(ROWS), mass=mass)
    trip = ROWS[0] * 20
    return [windows, make_query(HistoryMode.SEQUENCE, [trip[:10]], [[4, 5]] * 10, mass=mass)]


def batch_of(mass: bool) -> Batch:
    queries = all_kinds(mass)
    return _batch([plan_of(query, VOCABULARY.sot, MODEL.architecture.block_size) for query in queries], queries)


def make() -> Engine:
    """An engine on the CPU, which needs values to find its sizes of tile; to be moved."""
    return make_engine(MODEL, CPU.model_copy(update={"threads": 1}), Direct(torch.device("cpu")))


def move(scorer: Engine, device: torch.device, dtype: torch.dtype, streams: Streams) -> None:
    scorer._device = device
    scorer._model.to(device, dtype)
    scorer._head._weight = scorer._model.lm_head.weight.detach()
    graphs = Graphs(scorer._model, scorer._tiler.sizes, streams, is_on=False)
    scorer._accelerated = Accelerated(scorer._model, scorer._head, graphs, streams)


class FakeStreams(Direct):
    """Copies are counted by `Watch`; host memory is real, made where fakes are not, so that it can be packed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._here = {dtype: torch.zeros(1 << 18, dtype=dtype) for dtype in (torch.int32, torch.float32)}
        self._numbers = {dtype: here.numpy() for dtype, here in self._here.items()}

    def memory(self, count: int, dtype: torch.dtype) -> Memory:
        """See `Streams`."""
        here = self._here[dtype]
        assert count <= len(here)
        return Memory(here, torch.empty(len(here), dtype=dtype, device=self._device), self._numbers[dtype])

    def upload(self, here: torch.Tensor, there: torch.Tensor) -> object:
        """See `Streams`."""
        return there.copy_(here, non_blocking=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mass", [False, True], ids=["logits", "with mass"])
def test_a_batch_on_cuda_is_one_copy_there_and_one_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mass: bool
) -> None:
    """All kinds of tile, candidates' logits, the normaliser: nothing else is copied, or waited for."""
    cuda = FakeCuda(monkeypatch, from_pageable=True)
    reads: list[int] = []

    def receive(self: Receiver, count: int) -> np.ndarray:
        assert self._memory.there.device == CUDA and self._memory.there.dtype == torch.float32
        reads.append(count)
        return np.zeros(count, np.float32)

    monkeypatch.setattr(Receiver, "receive", receive)
    scorer, streams = make(), FakeStreams(CUDA)
    with cuda.here(watched=False):
        move(scorer, CUDA, dtype, streams)
    monkeypatch.setattr(scorer._threads, "each", lambda function, jobs: [function(job) for job in jobs])
    monkeypatch.setattr(Accelerated, "compute", inspect.unwrap(Accelerated.compute))
    batch = batch_of(mass)
    with cuda.here(), torch.no_grad():  # torch has no fakes in its inference mode
        ready = scorer.assemble(batch)
        assert cuda.watch.copies == 1
        scores = inspect.unwrap(Engine.score)(scorer, ready)
    assert {tile.group.kind for tile in ready.tiling.tiles} == set(Kind)
    assert len(scores.log_probs) == len(batch.candidates)
    assert (cuda.watch.copies, len(reads)) == (1, 1)
    assert (reads[0] > sum(scorer._head.chunks.cover(len(batch.candidates)))) is mass


@pytest.mark.parametrize("kind", list(Kind))
def test_a_tile_on_the_meta_device(kind: Kind) -> None:
    scorer = make()
    move(scorer, META, torch.float32, Direct(META))
    group = next(group for group in scorer._buckets.groups if group.kind is kind)
    random = np.random.default_rng(0)
    size = group.sizes(256)[0]
    contexts = random.integers(VOCABULARY.size, size=(group.samples(size), group.width), dtype=np.int32)
    tile, _ = calibrate.sample(group, size, contexts, random)
    with Watch():
        states = tile.states(scorer._model, META)
    assert (states.device, states.shape) == (META, (tile.count, MODEL.architecture.n_embd))


def test_which_device_a_setting_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        CUDA, CUDA, torch.device("cuda", 1), torch.device("cpu"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="device=cuda:2, but torch sees 2 CUDA devices here"):
        find_device("cuda:2")
