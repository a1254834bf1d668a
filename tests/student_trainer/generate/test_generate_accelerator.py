"""The searches on an accelerator that is not there: one read a step, one copy a tile, the trips of the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import REPOSITORY
from support.fake_cuda import CUDA, FakeCuda, lend_graph
from support.random_city import random_network
from support.students import SCALE, random_model, random_pairs

from student_trainer.data import graph, packing
from student_trainer.data.network import RoadNetwork
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.best_first import BestFirstSearch
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.found import Found
from student_trainer.generate.pairs import Pairs
from student_trainer.generate.shortest import ShortestPathSearch
from student_trainer.model import device as devices
from student_trainer.model import incremental
from student_trainer.model import path_attention as attention
from student_trainer.model.device import one_thread
from student_trainer.model.incremental import IncrementalStudent

TILE = incremental.TILE * incremental.FAR


class Fetches:
    """Stands in for the one function that waits for a device: random answers, and how often they are read."""

    def __init__(self) -> None:
        self.count = 0
        self._random = np.random.default_rng(0)

    def __call__(self, tensor: torch.Tensor) -> npt.NDArray:
        """So many numbers."""
        assert tensor.device == CUDA
        self.count += 1
        return self._random.standard_normal(tuple(tensor.shape)).astype(np.float32)


def student_there(network: RoadNetwork, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, top_k: int = 0) -> Any:
    monkeypatch.setattr(IncrementalStudent, "_exact_tiles", lambda self: (TILE,))  # which compares values, once
    model = random_model(network)
    with cuda.here(watched=False):
        model.to(CUDA)
    lend_graph(model, network)
    with cuda.here(watched=False):
        return IncrementalStudent(model, network, SCALE, top_k)


def search_of(method: str, student: IncrementalStudent, pairs: Pairs) -> Any:
    """A search of few steps."""
    settings = SearchConfig(max_steps=12, max_expanded=8, width=3)
    if method == "beam":
        return BeamSearch(student, pairs, settings, 16)
    if method == "best_first":
        return BestFirstSearch(student, pairs, settings, 16)
    length = np.random.default_rng(1).uniform(50, 500, student.network.num_roads)
    return ShortestPathSearch(student.network, length, pairs, np.zeros(len(length)), student, 16)


def pairs_with_ways(network: RoadNetwork, seed: int) -> tuple[Pairs, list[int]]:
    """Pairs, and those of them between which there is a way."""
    pairs = random_pairs(network, 60, seed=seed)
    return pairs, np.flatnonzero(graph.reachable(network, pairs.origin, pairs.destination)).tolist()


@pytest.mark.parametrize("has_triton", [False, True])
@pytest.mark.parametrize("method", ["beam", "best_first", "shortest_path"])
def test_a_step_of_a_search_on_cuda_reads_once(monkeypatch: pytest.MonkeyPatch, method: str, has_triton: bool) -> None:
    """All trips' answers at once; and sends the paths as one array, and the candidates as another."""
    if has_triton and importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton: pip install -e '.[kernels]'")
    monkeypatch.setattr(attention, "HAS_KERNELS", has_triton)
    network, _ = random_network(60, seed=2)
    pairs, todo = pairs_with_ways(network, 2)
    cuda, fetches = FakeCuda(monkeypatch), Fetches()
    student = student_there(network, cuda, monkeypatch)
    monkeypatch.setattr(devices, "fetch", fetches)
    with cuda.here():
        found = list(search_of(method, student, pairs).run(todo))
    assert len(found) == len(todo) > 30 and student.forward_calls > 10
    assert student.forward_rows > 3 * student.forward_calls  # many trips share a step
    assert fetches.count == student.forward_calls
    assert cuda.watch.copies == 2 * student.forward_calls


def test_a_bound_of_all_roads_on_cuda_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental, "PAIRS", 50)
    network, _ = random_network(60, seed=2)
    cuda, fetches = FakeCuda(monkeypatch), Fetches()
    student = student_there(network, cuda, monkeypatch)
    monkeypatch.setattr(devices, "fetch", lambda tensor: np.abs(fetches(tensor)))
    with cuda.here():
        candidates, cost = student.least_costs(3)
    assert fetches.count == 1 and cuda.watch.copies > 2 and len(cost) == len(candidates.road)


def test_a_time_of_a_road_that_is_no_candidate_is_one_read_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """`candidate_top_k` may cut off the road that a shortest path takes."""
    network, _ = random_network(60, seed=2)
    cuda, fetches = FakeCuda(monkeypatch), Fetches()
    student = student_there(network, cuda, monkeypatch, top_k=1)
    monkeypatch.setattr(devices, "fetch", fetches)
    pairs, todo = pairs_with_ways(network, 2)
    with cuda.here():
        list(search_of("shortest_path", student, pairs).run(todo))
    assert student.forward_calls < fetches.count <= 2 * student.forward_calls


def as_far(student: IncrementalStudent, monkeypatch: pytest.MonkeyPatch) -> IncrementalStudent:
    """The student as it is on an accelerator, but for the place of its tensors."""
    monkeypatch.setattr(incremental, "together", packing.by_one_copy)
    monkeypatch.setattr(incremental, "attend", attention.attend_there)
    monkeypatch.setattr(attention, "HAS_KERNELS", False)
    monkeypatch.setattr(attention, "PAIRS", 100)  # several chunks
    student._times_kept = int(np.diff(student.network.successor_offsets).max())
    student._largest, student.tiles = 64, (64,)
    return student


@pytest.mark.parametrize(("method", "top_k"), [("beam", 0), ("best_first", 0), ("shortest_path", 2)])
def test_what_an_accelerator_does_finds_the_trips_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, method: str, top_k: int
) -> None:
    network, _ = random_network(60, seed=4)
    pairs, todo = pairs_with_ways(network, 4)

    def found() -> list[Found]:
        with one_thread():
            trips = list(search_of(method, student, pairs).run(todo))
        return sorted(trips, key=lambda trip: trip.pair)

    student = IncrementalStudent(random_model(network, num_layers=3), network, SCALE, top_k)
    expected = found()
    as_far(student, monkeypatch)
    for ours, theirs in zip(found(), expected, strict=True):
        assert (ours.status, ours.expanded, ours.roads.tolist()) == (
            theirs.status, theirs.expanded, theirs.roads.tolist(),
        )  # fmt: skip
        assert np.abs(ours.times - theirs.times).max() <= 1  # a rounding may fall either way
        if theirs.log_prob is not None:
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)


def test_arrays_that_travel_together_arrive() -> None:
    arrays = [
        np.arange(7, dtype=np.float32).reshape(7, 1), np.array([[1, 2, 3]], np.int32), np.array([2**31 - 1, -1]),
        np.empty(0, np.int64), np.array([0.5], np.float32),
    ]  # fmt: skip
    found = packing.by_one_copy(arrays, torch.device("cpu"))
    for tensor, array in zip(found, arrays, strict=True):
        assert tensor.dtype == (torch.float32 if array.dtype == np.float32 else torch.int64)
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert not tensor.numel() or tensor.data_ptr() % 16 == 0
    for tensor, array in zip(packing.together(arrays, torch.device("cpu")), arrays, strict=True):
        assert not array.size or tensor.data_ptr() == array.ctypes.data


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install -e '.[kernels]'")
def test_the_kernel_is_the_compiled_loops() -> None:
    """In a process of its own: Triton looks for the interpreter when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "support.path_attention"],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )  # fmt: skip
    for case in json.loads(done.stdout):
        assert case["kernel"] < 1e-6 and case["gathered"] < 1e-6 and case["alone"]
