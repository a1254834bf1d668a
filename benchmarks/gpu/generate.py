"""Part `generate`: beam search and next-road predictions on the device, beside the same code on the processor.

Weights are those of part `train`'s run without a teacher where it has left some; without them they are random, and few
trips arrive, but a step costs as much. The processor searches with a thread a core, the device with `THREADS_FAR`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import clock
from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from shared import provenance
from shared.store import Store
from student_trainer.data import graph
from student_trainer.data.network import RoadNetwork
from student_trainer.generate import workers
from student_trainer.generate.beam import BeamSearch
from student_trainer.generate.config import LANES, LANES_FAR, THREADS_FAR, SearchConfig
from student_trainer.generate.found import Found
from student_trainer.generate.pairs import Pairs, draw
from student_trainer.model import device as devices
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.incremental import IncrementalStudent
from student_trainer.model.time_scale import TimeScale
from student_trainer.model.weights import load_model
from student_trainer.predict.config import CutConfig
from student_trainer.predict.positions import predict
from student_trainer.runs.layout import RunFiles

TOP_K, SEED = 64, 42
SEARCH = SearchConfig(max_steps=100)
CPU = torch.device("cpu")


def run(task: Task, record: Record) -> None:
    """Measures both on both."""
    store = Store(task.store)
    network = RoadNetwork.load(store)
    with record.attempt("search"):
        record.need(10)
        _search(task, store, network, record)
    with record.attempt("predictions"):
        record.need(5)
        _predict(task, store, network, record)


def _model(task: Task, store: Store, network: RoadNetwork, device: torch.device) -> tuple[HOSER, TimeScale]:
    best = RunFiles(Path(task.work, "run-vanilla")).best
    if best.exists():
        model, scale = load_model(best, store)
        assert isinstance(model, HOSER)  # as `train` makes them unless told otherwise
    else:
        torch.manual_seed(SEED)
        config = ModelConfig(road_id_dim=task.size.road_id_dim, road_attr_dim=task.size.road_attr_dim)
        model, scale = HOSER(config, network).eval(), TimeScale(*store.time_scale)
    return model.to(device), scale


def _search(task: Task, store: Store, network: RoadNetwork, record: Record) -> None:
    trips = store.trips("test")
    pairs = draw(trips, min(task.size.pairs, len(trips)), SEED, "test")
    there = graph.reachable(network, pairs.origin, pairs.destination) & (pairs.origin != pairs.destination)
    todo = np.flatnonzero(there).tolist()
    found: dict[str, dict[int, Found]] = {}
    pace: dict[str, float] = {}
    for name, device in {"processor": CPU, "device": task.device}.items():
        student = IncrementalStudent(*_student_of(task, store, network, device), TOP_K)
        with devices.float32_products(device, tf32=False):
            _found(student, pairs, todo[:4], device)  # compiles what is compiled at its first use
            rows, calls, start = student.forward_rows, student.forward_calls, time.perf_counter()
            found[name] = _found(student, pairs, todo, device)
            seconds = time.perf_counter() - start
        rows, calls = student.forward_rows - rows, student.forward_calls - calls
        pace[name] = rows / seconds
        baseline = ("processor", pace["processor"]) if name == "device" else None
        record.add(f"beam search, {name}", pace[name], "steps/s", note=f"{rows / calls:.0f} at once", baseline=baseline)
        record.add(f"trips, {name}", len(todo) / seconds, "trips/s")
        record.add(f"smallest exact tile, {name}", student.tiles[0], "rows")
    same = [found["processor"][pair].roads.tolist() == found["device"][pair].roads.tolist() for pair in todo]
    record.add("trips of the same roads", float(np.mean(same)))


def _student_of(
    task: Task, store: Store, network: RoadNetwork, device: torch.device
) -> tuple[HOSER, RoadNetwork, TimeScale]:
    model, scale = _model(task, store, network, device)
    return model, network, scale


def _found(student: IncrementalStudent, pairs: Pairs, todo: list[int], device: torch.device) -> dict[int, Found]:
    """The trips by pair."""
    is_far = device.type != "cpu"
    lanes, threads = (LANES_FAR, THREADS_FAR) if is_far else (LANES, provenance.cores())
    searches = [BeamSearch(student, pairs, SEARCH, min(lanes, len(todo))) for _ in range(threads)]
    return {trip.pair: trip for trip in workers.search([one.run for one in searches], todo)}


def _predict(task: Task, store: Store, network: RoadNetwork, record: Record) -> None:
    trips = store.trips("test")
    longer = np.flatnonzero(trips.lengths >= 2)
    few, many = (trips.take(longer[: task.size.val_trips * times]) for times in (1, 20))
    pace: dict[str, float] = {}
    for name, device, some in (("processor", CPU, few), ("device", task.device, many)):
        model, scale = _model(task, store, network, device)
        predict(model, network, few, scale, CutConfig(), device)
        clock.synchronise(device)
        start = time.perf_counter()
        arrays = predict(model, network, some, scale, CutConfig(), device)
        pace[name] = len(arrays["trip"]) / (time.perf_counter() - start)
        baseline = ("processor", pace["processor"]) if name == "device" else None
        record.add(f"predictions, {name}", pace[name], "positions/s", baseline=baseline)
