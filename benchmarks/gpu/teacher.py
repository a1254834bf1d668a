"""Part `teacher`: the engine in the process, against what a training script would do on the same device.

Every way is asked about the same positions, from numpy arrays to numpy arrays; the model has the same weights in the
same dtype.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import naive, questions
from benchmarks.gpu import clock, machine, teachers
from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from benchmarks.local import Float16, LocalTeacher
from benchmarks.questions import Positions
from shared.store import Store
from shared.wire import ScoreQuery

ROUNDING = 0.03
"""Greatest difference of a log-probability between two ways to compute in half precision."""
BASELINE = "2,000 windows at once"


def run(task: Task, record: Record) -> None:
    """Measures; each way on its own."""
    size, device = task.size, task.device
    heard = teachers.Warnings.listening()
    store = Store(task.store)
    began = time.perf_counter()
    path = teachers.write_wide(task.work, size, store.tokeniser.vocabulary.cells)
    record.detail("write the teacher, s", time.perf_counter() - began)
    began = time.perf_counter()
    scorer = teachers.load(path, device, size)
    scorer.warm_up()
    record.add("start of the engine", time.perf_counter() - began, "s", note="reading and comparing shapes included")
    record.detail("sizes of tile", teachers.chosen_sizes(scorer))
    record.detail("engine's log", heard.texts)
    is_invariant = not any("may depend on its batch" in text for text in heard.texts)
    record.add("largest shapes do not depend on the batch", is_invariant)
    record.detail("numerics", [scorer.served.numerics, scorer.served.compute_dtype, scorer.served.device])
    trips = questions.of_trips(store, store.trips("train"), 0, size.trips)
    fresh = questions.of_trips(store, store.trips("val"))
    with record.attempt("lone requests"):
        _lone(task, scorer, fresh, record)
    with record.attempt("tiles"):
        _tiles(task, scorer, record)
    with record.attempt("every state new"):
        record.need(10)
        _new(task, scorer, record)
    speeds: dict[str, float] = {}
    with record.attempt("passes"):
        record.need(15)
        speeds |= _passes(task, scorer, trips, record)
    with record.attempt("device's share"):
        record.need(10)
        _device_share(task, scorer, record)
    record.add("memory of the engine", clock.peak_mib(device), "MiB")
    with record.attempt("obvious implementations"):
        record.need(15)
        speeds |= _obvious(task, scorer, path, fresh, record)
    for name in ("every state new", "first pass", "second pass"):
        found = next((figure for figure in record.figures if figure.name == name), None)
        if found is not None and BASELINE in speeds:
            record.add(f"{name} ÷ {BASELINE}", float(found.value) / speeds[BASELINE])
    record.add("most memory", clock.peak_mib(device), "MiB")


def compiled(task: Task, record: Record) -> None:
    """Part `compiled`: the obvious implementation at its best under torch.compile, beside itself uncompiled."""
    size, device = task.size, task.device
    store = Store(task.store)
    path = teachers.write_wide(task.work, size, store.tokeniser.vocabulary.cells)
    network = teachers.plain(path, device, task.dtype)
    positions = questions.of_trips(store, store.trips("val"))
    count, sot = min(size.batch_positions, len(positions)), teachers.sot_of(path)
    rates = {}
    for name in ("eager", "compiled"):
        with record.attempt(name):
            began = time.perf_counter()
            if name == "compiled":
                backend = "inductor" if task.is_full else "eager"
                network.hidden = torch.compile(network.hidden, backend=backend)  # type: ignore[method-assign]

            def call() -> Any:
                return teachers.at_once(network, positions, 0, count, size.window, sot)

            call()
            record.add(f"{name}, first call", time.perf_counter() - began, "s")
            rates[name] = count / clock.seconds_of(call, device, 5 if task.is_full else 1)
            baseline = ("eager", rates["eager"]) if name == "compiled" and "eager" in rates else None
            record.add(name, rates[name], "positions/s", baseline=baseline)


def _lone(task: Task, scorer: Any, positions: Positions, record: Record) -> None:
    """The first ten requests of one window, and of one trip, with nothing remembered and nobody else asking."""
    for name, made in {
        "lone window": [positions.windows(97 * i % len(positions), 1, task.size.window) for i in range(10)],
        "lone trip": [positions.trips(i % len(positions.lengths), 1, task.size.window) for i in range(10)],
    }.items():
        teacher = teachers.local(scorer)
        found = [1000 * _timed(teacher.score, query)[0] for query in made]
        record.detail(f"{name}, ms", found)
        record.add(f"{name}, first", found[0], "ms")
        record.add(f"{name}, median of the next nine", float(np.median(found[1:])), "ms")


def _tiles(task: Task, scorer: Any, record: Record) -> None:
    edge = task.size.matmul
    rate = machine.matmul_rate(edge, edge, edge, task.device, task.dtype)
    record.add("matmul", rate / 1e12, "TFLOP/s", note="large product, now: the limits below are by it")
    tiles = list(teachers.sample_tiles(scorer, task.size))
    for number, tile in enumerate(tiles):
        size = "largest tile" if not number else f"tile of {tile.nodes} nodes"
        floor = tile.operations / rate
        served = 0.0
        for way, call in tile.ways.items():
            if way != teachers.AS_SERVED and tile not in (tiles[0], tiles[-1]):
                continue
            name = size if way == teachers.AS_SERVED else f"{size}, {way}"
            with torch.inference_mode():
                seconds = clock.seconds_of(call, task.device, 5)
                traced = clock.trace(call, task.device, 3)
            baseline = (teachers.AS_SERVED, 1000 * served) if served else None
            record.add(name, 1000 * seconds, "ms", limit=1000 * floor, note=f"{tile.nodes} nodes", baseline=baseline)
            served = served or seconds
            record.add(f"{name}, share of the limit", floor / seconds)
            if traced is not None:
                record.add(f"{name}, device busy", 1000 * traced.seconds, "ms", limit=1000 * floor)
                record.add(f"{name}, kernels", traced.kernels, "")
                record.add(f"{name}, launches", traced.launches, "")
                record.detail(f"{name}, longest kernels", traced.longest)


def _new(task: Task, scorer: Any, record: Record) -> None:
    """Positions at random: every one is a new state."""
    size, random = task.size, np.random.default_rng(1)
    cells = size.grid[0] * size.grid[1]
    positions = questions.at_random(cells, size.new_positions, random)
    warm = questions.at_random(cells, size.new_positions // 16, random)
    _pass(teachers.local(scorer), warm, size.request_trips, size.window)
    teacher = teachers.local(scorer)
    seconds, _ = _timed(_pass, teacher, positions, size.request_trips, size.window)
    record.add("every state new", len(positions) / seconds, "positions/s")
    misses = teacher.table.outcomes[2]
    stages = {name: 1e6 * spent / misses for name, spent in teacher.seconds.items()}
    record.detail("stages of a new state, µs", stages)
    record.add("host per new state", sum(v for name, v in stages.items() if name != "model"), "µs")
    record.add("model per new state", stages["model"], "µs", note="copies and waits included")
    for name, spent in stages.items():
        record.add(f"{name} per new state", spent, "µs")


def _passes(task: Task, scorer: Any, positions: Positions, record: Record) -> dict[str, float]:
    """A first and a second pass over real trips, as a trainer makes them."""
    size = task.size
    teacher = teachers.local(scorer)
    before = scorer.computed.states, scorer.computed.padded
    seconds, answers = _timed(_pass, teacher, positions, size.request_trips, size.window)
    first = record.add("first pass", len(positions) / seconds, "positions/s")
    hits, waits, misses = teacher.table.outcomes
    record.add("first pass, share of new states", misses / len(positions))
    record.detail("first pass", {"positions": len(positions), "hit": hits, "wait": waits, "miss": misses})
    padded = (scorer.computed.padded - before[1]) / max(1, scorer.computed.states - before[0])
    record.add("padded nodes of a new state", padded, "")
    record.detail("first pass, stages of a position, µs", _per_position(teacher, len(positions)))
    teacher.seconds.clear()
    seconds, again = _timed(_pass, teacher, positions, size.request_trips, size.window)
    second = record.add("second pass", len(positions) / seconds, "positions/s")
    record.add("host per known position", 1e6 * seconds / len(positions), "µs")
    record.add("second pass has the bits of the first", all(map(np.array_equal, answers, again)))
    return {"first pass": first, "second pass": second}


def _device_share(task: Task, scorer: Any, record: Record) -> None:
    """How long the device computes while new states are asked for without a pause, one request after another."""
    size, cells = task.size, task.size.grid[0] * task.size.grid[1]
    fresh = _fresh(cells, size.request_trips, size.window)
    teacher = teachers.local(scorer)

    def ask() -> None:
        teacher.score(next(fresh))

    times = 5 if task.is_full else 1
    began = time.perf_counter()
    for _ in range(times):
        ask()
    wall = (time.perf_counter() - began) / times
    traced = clock.trace(ask, task.device, times)
    if traced is not None:
        record.add("request of new states", 1000 * wall, "ms")
        record.add(
            "request of new states, device busy", 1000 * traced.seconds, "ms", baseline=("its time", 1000 * wall)
        )
        record.detail("request of new states, longest kernels", traced.longest)


def _obvious(task: Task, scorer: Any, path: Any, positions: Positions, record: Record) -> dict[str, float]:
    size, device = task.size, task.device
    network = teachers.plain(path, device, task.dtype)
    sot = scorer.served.header.tokeniser.vocabulary.sot
    speeds: dict[str, float] = {}
    ways: dict[str, tuple[Callable[..., Any], Any, int]] = {}
    count = min(size.batch_positions, len(positions))
    trips = positions.trips(0, min(size.naive_trips, len(positions.lengths)), size.window)
    one_trip = positions.trips(0, 1, size.window)
    ways["window by window"] = naive.window_by_window, (network, one_trip, sot), one_trip.positions
    ways["trip at once"] = naive.trip_at_once, (network, trips, sot), trips.positions
    ways[BASELINE] = teachers.at_once, (network, positions, 0, count, size.window, sot), count
    queries = {"window by window": one_trip, "trip at once": trips, BASELINE: positions.windows(0, count, size.window)}
    record.detail("positions of the obvious implementations", {name: way[2] for name, way in ways.items()})
    for name, (function, arguments, scored) in ways.items():
        with record.attempt(name):
            record.need(2)
            times = 5 if name == BASELINE and task.is_full else 1
            speeds[name] = scored / clock.seconds_of(functools.partial(function, *arguments), device, times, 2)
            record.add(name, speeds[name], "positions/s")
            theirs = np.asarray(function(*arguments), np.float32)
            mine = teachers.local(scorer).score(queries[name]).astype(np.float32)
            worst = float(np.abs(mine - theirs).max())
            record.add(f"{name}: greatest difference of a log-probability", worst, "nats", limit=ROUNDING)
    with record.attempt("kernels of the obvious implementation"):
        traced = clock.trace(lambda: ways[BASELINE][0](*ways[BASELINE][1]), device)
        if traced is not None:
            record.add(f"{BASELINE}, device busy", 1000 * traced.seconds, "ms")
            record.detail(f"{BASELINE}, longest kernels", traced.longest)
    return speeds


def _fresh(cells: int, trips: int, window: int) -> Iterator[ScoreQuery]:
    """Requests that are never repeated."""
    random = np.random.default_rng(2)
    while True:
        yield questions.at_random(cells, trips * questions.RANDOM_TRIP, random).trips(0, trips, window)


def _pass(teacher: LocalTeacher, positions: Positions, trips: int, window: int) -> list[Float16]:
    """The answers to a trainer's requests about all trips."""
    total = len(positions.lengths)
    firsts = itertools.takewhile(lambda first: first < total, itertools.count(0, trips))
    return [teacher.score(positions.trips(first, min(trips, total - first), window)) for first in firsts]


def _per_position(teacher: LocalTeacher, positions: int) -> dict[str, float]:
    return {name: 1e6 * seconds / positions for name, seconds in teacher.seconds.items()}


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found
