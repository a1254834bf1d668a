"""Searches and next-road predictions on the accelerator: the CPU's answers, a read a step, and trips that are alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.random_city import random_network, write_random_store
from support.students import SCALE, random_model, random_pairs

from shared.store import Store
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import workers
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.best_first import BestFirstSearch
from student_trainer.generate.config import SearchConfig
from student_trainer.generate.found import Found
from student_trainer.model import device as devices
from student_trainer.model.graph_attention import HAS_KERNELS
from student_trainer.model.incremental import IncrementalStudent
from student_trainer.predict.config import CutConfig
from student_trainer.predict.positions import predict

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
ROUNDING = 1e-4
"""Of a step's log-probabilities between devices; these of a path of 40 steps may differ by a few times it."""
SAME = 0.98
"""Share of trips that must have the same roads: a choice between two nearly equal beams hangs on the last bits."""
Kind = type[BeamSearch] | type[BestFirstSearch]


def found_on(device: torch.device, kind: Kind, todo: range, lanes: int = 64) -> list[Found]:
    """Trips in a network of 60 roads by a student of HOSER's own widths, in two threads."""
    network, _ = random_network(60, seed=11)
    model = random_model(network, seed=11, gain=2.0, road_id_dim=64, road_attr_dim=16).to(device)
    student, pairs = IncrementalStudent(model, network, SCALE, 0), random_pairs(network, 200, seed=11)
    settings = SearchConfig(max_steps=40, max_expanded=30)
    with devices.float32_products(device, tf32=False):
        runs = [kind(student, pairs, settings, lanes).run for _ in range(2)]
        return sorted(workers.search(runs, todo), key=lambda trip: trip.pair)


@pytest.mark.parametrize("kind", [BeamSearch, BestFirstSearch])
def test_nearly_all_trips_are_those_of_the_cpu(accelerator: torch.device, kind: Kind) -> None:
    ours, theirs = (found_on(device, kind, range(200)) for device in (accelerator, CPU))
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.roads.tolist() == b.roads.tolist()]
    assert len(same) >= SAME * len(theirs)
    for a, b in same:
        assert a.status == b.status and np.abs(a.times - b.times).max() <= len(a.times)  # roundings fall either way
        assert a.log_prob == pytest.approx(b.log_prob, abs=ROUNDING * len(a.roads))


def test_a_trip_is_the_same_in_bits_alone(accelerator: torch.device) -> None:
    if accelerator.type == "cuda" and not HAS_KERNELS:
        pytest.skip("needs Triton: sums over paths side by side depend on the longest")
    together = found_on(accelerator, BeamSearch, range(120))
    for pair in (0, 57, 119):
        (alone,) = found_on(accelerator, BeamSearch, range(pair, pair + 1), lanes=1)
        assert alone.roads.tolist() == together[pair].roads.tolist() and alone.log_prob == together[pair].log_prob


def test_a_step_of_a_search_waits_once(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = random_network(60, seed=2)
    student = IncrementalStudent(random_model(network).to(cuda), network, SCALE, 0)
    search = BeamSearch(student, random_pairs(network, 40, seed=2), SearchConfig(max_steps=20), 16)
    list(search.run(range(4)))
    fetch, reads, calls = devices.fetch, [], student.forward_calls

    def allowed(tensor: torch.Tensor) -> npt.NDArray:
        torch.cuda.set_sync_debug_mode("default")
        reads.append(len(tensor))
        values = fetch(tensor)
        torch.cuda.set_sync_debug_mode("error")
        return values

    monkeypatch.setattr(devices, "fetch", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(search.run(range(40)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == student.forward_calls - calls > 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def test_next_road_predictions_are_those_of_the_cpu(accelerator: torch.device, store: Store) -> None:
    """As `evaluate` makes them, of several batches."""
    network, trips = RoadNetwork.load(store), store.trips("train")
    ours, theirs = (
        predict(random_model(network, gain=2.0).to(device), network, trips, SCALE, CutConfig(batch_size=16), device)
        for device in (accelerator, CPU)
    )
    for name in ("trip", "step", "road", "label", "candidate_offsets"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    for name in ("logit", "log1p_seconds_standardised"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=ROUNDING)
