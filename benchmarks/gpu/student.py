"""Part `student`: a training step at full size against the straightforward one on the same device.

ours             `Trainer.train_step` as a run has it, its batches built beforehand: what the device can do
ours, fed        the same with batches built ahead by the trainer's own thread: what a run without a teacher does
ours, eager      without CUDA graphs
straightforward  the model of `straightforward/student.py`, same parameters, optimiser and batches

Few batches are repeated, so that all their shapes are recorded before the clock starts; what a recording takes is a
figure of its own.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu import clock
from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from benchmarks.straightforward import student
from benchmarks.straightforward.collate import build_padded, matrices_by_trip
from benchmarks.straightforward.student import PaddedTensors, StraightforwardHOSER
from shared.store import Store
from student_trainer.data.batch import build_batch
from student_trainer.data.loader import Prefetcher
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import Packed, Shape
from student_trainer.distill.query import build_query
from student_trainer.model.config import ModelConfig
from student_trainer.train.config import OptimConfig, RuntimeConfig, TrainConfig
from student_trainer.train.feed import most_candidates
from student_trainer.train.optim import build_optimizer
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, prepare_step
from student_trainer.train.session import Session

PRECISIONS = {"float32": "off", "bfloat16": "bfloat16", "float16": "float16"}
"""`runtime.amp` by name."""
BATCHES = 12
"""Different ones, which are repeated."""
EAGER_STEPS = 10
"""Of our step without graphs, timed."""
LOSS = 1e-3
"""Greatest relative difference of the first step's loss, float32 with TF32 products."""

Step = Callable[[], float]


def run(task: Task, record: Record) -> None:
    """Measures each precision on its own."""
    store = Store(task.store)
    with record.attempt("host"):
        _host(task, store, record)
    first: dict[str, float] = {}
    for precision in PRECISIONS if task.is_full else ("float32", "bfloat16"):
        theirs: dict[str, float] = {}
        for name, way in {"straightforward": _straightforward, "eager": _eager}.items():
            if (precision, name) == ("float16", "eager"):
                continue  # ours is
            with record.attempt(f"{name} {precision}"):
                record.need(4)
                theirs[name] = way(task, store, precision, record, first)
        with record.attempt(f"ours {precision}"):
            record.need(5)
            _ours(task, store, precision, record, first, theirs)
    if {"ours float32", "straightforward float32"} <= first.keys():
        ours, plain = first["ours float32"], first["straightforward float32"]
        record.add("difference of the first loss, float32", abs(ours - plain) / abs(plain), limit=LOSS)
    record.detail("first losses", first)


def _settings(task: Task, precision: str, graphs: str = "auto") -> TrainConfig:
    size = task.size
    return TrainConfig(
        data=task.store,
        out=task.work / "never",
        model=ModelConfig(road_id_dim=size.road_id_dim, road_attr_dim=size.road_attr_dim),
        optim=OptimConfig(batch_size=size.batch_size),
        runtime=RuntimeConfig.model_validate(
            {"amp": PRECISIONS[precision], "device": str(task.device), "graphs": graphs}
        ),
    )


def _session(task: Task, store: Store, precision: str, graphs: str = "auto") -> Session:
    settings = _settings(task, precision, graphs)
    return Session(settings, store, Runtime.of(settings.runtime, task.device))


def _plan(session: Session, task: Task) -> list[PlannedStep]:
    return list(itertools.islice(session.schedule.from_step(0), BATCHES if task.is_full else 2))


def _eager(task: Task, store: Store, precision: str, record: Record, first: dict[str, float]) -> float:
    """Steps a second of single operations."""
    session, name = _session(task, store, precision, "off"), f"ours {precision}, eager"
    prepared = [prepare_step(session.feed, session.model.graph, planned) for planned in _plan(session, task)]
    session.trainer.train_step(prepared[0])
    first[name] = session.trainer.take_metrics(0.0)["train/loss"]
    seconds = _rate(session.trainer.train_step, prepared, min(EAGER_STEPS, task.size.steps), task)
    record.add(name, 1 / seconds, "steps/s", note="without CUDA graphs")
    return 1 / seconds


def _ours(
    task: Task, store: Store, precision: str, record: Record, first: dict[str, float], theirs: dict[str, float]
) -> None:
    session, name = _session(task, store, precision), f"ours {precision}"
    plan = _plan(session, task)
    prepared = [prepare_step(session.feed, session.model.graph, planned) for planned in plan]
    clock.reset_peak(task.device)
    began = time.perf_counter()
    session.trainer.train_step(prepared[0])
    first[name] = session.trainer.take_metrics(0.0)["train/loss"]
    for step in prepared[1:]:
        session.trainer.train_step(step)
    clock.synchronise(task.device)
    warm = time.perf_counter() - began
    if (graphs := session.trainer.graphs) is not None:
        record.add(f"{name}, steps are CUDA graphs", not graphs.is_off)
        record.add(f"{name}, shapes", graphs.shapes, "", note=f"of {len(prepared)} batches")
        record.add(f"{name}, recording a shape", 1000 * warm / max(graphs.shapes, 1), "ms", note="first steps included")
    seconds = _rate(session.trainer.train_step, prepared, task.size.steps, task)
    baseline = ("straightforward", theirs["straightforward"]) if "straightforward" in theirs else None
    record.add(name, 1 / seconds, "steps/s", baseline=baseline, note="batches built beforehand")
    if "eager" in theirs:
        record.add(f"{name} ÷ eager", 1 / seconds / theirs["eager"])
    record.add(f"{name}, memory", clock.peak_mib(task.device), "MiB")
    record.add(f"{name}, bad steps", session.progress.bad_steps, "steps")
    last = prepared[-1]
    with record.attempt(f"{name}, kernels"):
        traced = clock.trace(lambda: session.trainer.train_step(last), task.device, 3)
        if traced is not None:
            record.add(f"kernels of a {precision} step", traced.kernels, "")
            record.add(f"copies of a {precision} step", traced.copies, "")
            record.add(
                f"device busy in a {precision} step", 1000 * traced.seconds, "ms", baseline=("its time", 1000 * seconds)
            )
            record.detail(f"{name}, longest kernels", traced.longest)
    with record.attempt(f"{name}, syncs"):
        waits = clock.syncs(lambda: session.trainer.train_step(last), task.device)
        if waits is not None:
            record.add(f"syncs of a {precision} step", waits.total(), "")
            record.detail(f"{name}, where it waits for the device", dict(waits.most_common()))
    with record.attempt(f"{name}, fed"):
        lookahead = session.settings.client.lookahead
        fed_plan = [plan[i % len(plan)] for i in range(task.size.warm + task.size.steps)]
        with Prefetcher(session._prepare, fed_plan, lookahead) as steps:
            source = iter(steps)
            for _ in range(task.size.warm):
                session.trainer.train_step(next(source))
            clock.synchronise(task.device)
            start = time.perf_counter()
            for step in source:
                session.trainer.train_step(step)
            clock.synchronise(task.device)
            fed = task.size.steps / (time.perf_counter() - start)
        record.add(f"{name}, fed", fed, "steps/s", baseline=("built beforehand", 1 / seconds))


def _straightforward(task: Task, store: Store, precision: str, record: Record, first: dict[str, float]) -> float:
    """Steps a second."""
    session, device, name = _session(task, store, precision), task.device, f"straightforward {precision}"
    settings = session.settings
    network, trips = RoadNetwork.load(store), store.trips("train")
    assert isinstance(settings.model, ModelConfig)
    model = StraightforwardHOSER(settings.model, network)
    weights = {name: tensor.cpu() for name, tensor in session.model.state_dict().items()}
    model.load_state_dict(weights)
    model.to(device)
    optimizer = build_optimizer(settings.optim, model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    dtype = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]
    made = []
    for planned in _plan(session, task):
        (index,) = planned.micro_batches
        made.append(
            PaddedTensors.of(build_padded(network, trips, index, matrices_by_trip, settings.batch.candidate_top_k))
        )

    def step(batch: PaddedTensors) -> torch.Tensor:
        there = batch.to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits, times = model(there)
        next_road, seconds = student.losses(logits.float(), times.float(), there, session.scale)
        loss: torch.Tensor = next_road + settings.time_weight * seconds
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return loss

    clock.reset_peak(device)
    first[name] = step(made[0]).item()
    seconds = _rate(step, made, task.size.steps, task)
    record.add(name, 1 / seconds, "steps/s", note="batches built beforehand")
    record.add(f"{name}, memory", clock.peak_mib(device), "MiB")
    with record.attempt(f"{name}, kernels"):
        traced = clock.trace(lambda: step(made[-1]), device)
        if traced is not None:
            record.add(f"{name}, kernels of a step", traced.kernels, "")
            record.add(
                f"{name}, device busy in a step", 1000 * traced.seconds, "ms", baseline=("its time", 1000 * seconds)
            )
    return 1 / seconds


def _rate(step: Callable[[Any], Any], prepared: Sequence[Any], steps: int, task: Task) -> float:
    """Seconds of a step."""
    for item in prepared[: task.size.warm]:
        step(item)
    clock.synchronise(task.device)
    start = time.perf_counter()
    for number in range(steps):
        step(prepared[number % len(prepared)])
    clock.synchronise(task.device)
    return (time.perf_counter() - start) / steps


def _host(task: Task, store: Store, record: Record) -> None:
    """Milliseconds of what the host does for a step, alone on its thread."""
    session = _session(task, store, "float32")
    settings, network, trips = session.settings, RoadNetwork.load(store), store.trips("train")
    planned = _plan(session, task)
    batches = [build_batch(network, trips, p.micro_batches[0], settings.batch.candidate_top_k) for p in planned[:4]]
    batch = batches[-1]
    read = np.concatenate([ids.numpy() for ids in batch.roads_read])
    (index,) = planned[-1].micro_batches
    graph = session.model.graph
    assert graph is not None
    shape = Shape.shared([Shape.of(batch)], most_candidates(network, settings.batch.candidate_top_k))
    parts: dict[str, Callable[[], Any]] = {
        "host: batch": lambda: build_batch(network, trips, index, settings.batch.candidate_top_k),
        "host: field": lambda: graph.field(read),
        "host: query": lambda: build_query(batch, network, settings.distill),
        "host: packing": lambda: Packed.of(batch, shape, pinned=task.device.type == "cuda"),
        "host: all of a step": lambda: session._prepare(planned[-1]),
    }
    for name, part in parts.items():
        record.add(name, 1000 * _median(part), "ms")
    record.detail("shapes", {"steps": batch.road.shape[1], "positions": batch.positions, "trips": len(index)})


def _median(function: Callable[[], Any], times: int = 15) -> float:
    function()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
