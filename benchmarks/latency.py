"""Section `latency`: how long one question for the next road takes, on one core.

    next_road   `Student.next_road`: lists in, candidates with probabilities and seconds out
    exported    the file of `student-trainer export`, tensors in and out
    whole trip  the same answers as `predict` computes them: all steps, with a made-up last road; embeddings known
    anew        that, with the road network embedded for every question

Trips are real ones of the validation split, cut at random places. The weights are random: speed does not depend on
what they have learned. The kinds take turns, so that what else the machine does meets all. Beside the time on the
clock stands that of the thread on the processor, which other work lengthens less.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import cities
from benchmarks.common import BenchmarkError, Options, Result, Table, torch_threads
from shared import ragged
from shared.store import Store, Trips
from student_trainer.data.batch import build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER
from student_trainer.model.student import NetworkEmbedding
from student_trainer.model.time_scale import TimeScale
from student_trainer.predict.export import portable, trace
from student_trainer.predict.predictor import Predictor
from student_trainer.prepare.config import GridConfig

CITY, GRID = "sf_taxi", GridConfig()
GOAL_MS = 2.0
TOLERANCE = 1e-4
Question = tuple[list[int], list[int], int]
Answer = Callable[[list[Question]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured: questions of a call, and calls of each kind."""

    batches: tuple[int, ...] = (1, 64)
    calls: tuple[int, ...] = (400, 60)


QUICK = Size(batches=(1, 4), calls=(2, 2))
TURN = 20
"""Calls of a kind before the next one's turn; of `anew`, which takes some hundred times as long, one."""


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if the kinds do not agree."""
    size = QUICK if options.quick else Size()
    store = cities.open_store(options, CITY, GRID)
    with torch_threads(1):
        predictor = _predictor(store)
        start = time.perf_counter()
        _ = predictor.last_step
        embed_s = time.perf_counter() - start
        questions = _questions(store.trips("val"), max(size.batches) * 8)
        figures = {
            batch: _measure(predictor, questions, batch, calls)
            for batch, calls in zip(size.batches, size.calls, strict=True)
        }
    settings = {
        **cities.facts(store),
        "roads": predictor.network.num_roads, "threads": 1,
        "model": ModelConfig().model_dump(mode="json"), **dataclasses.asdict(size),
        "steps_median": float(np.median([len(roads) for roads, _, _ in questions])),
    }  # fmt: skip
    tables = [_table(batch, found) for batch, found in figures.items()]
    flat = {str(batch): found for batch, found in figures.items()} | {"embed_s": embed_s}
    return Result("latency", "Latency of the next road", settings, flat, tables, _notes(settings, figures, embed_s))


def _predictor(store: Store) -> Predictor:
    network = RoadNetwork.load(store)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HOSER(ModelConfig(), network)
    return Predictor(model, store, network, TimeScale(*store.time_scale))


def _questions(trips: Trips, count: int) -> list[Question]:
    """Trips under way, each cut after some of its roads."""
    rng, found = np.random.default_rng(0), []
    for trip in rng.permutation(np.flatnonzero(trips.lengths > 1))[:count]:
        first, end = int(trips.offsets[trip]), int(trips.offsets[trip + 1])
        known = slice(first, first + int(rng.integers(1, end - first)))
        found.append((trips.roads[known].tolist(), trips.times[known].tolist(), int(trips.roads[end - 1])))
    return found


def _measure(predictor: Predictor, questions: list[Question], batch: int, calls: int) -> dict[str, Any]:
    """Milliseconds of a call of each kind."""
    kinds = _kinds(predictor)
    parts = [questions[i : i + batch] for i in range(0, len(questions) - batch + 1, batch)]
    _compare(kinds, parts[0])
    for part in parts[:3]:
        for answer in kinds.values():
            answer(part)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for first in range(0, calls, TURN):
        for name, answer in kinds.items():
            for call in range(first, min(first + (1 if name == "anew" else TURN), calls)):
                start = time.perf_counter(), time.thread_time()
                answer(parts[call % len(parts)])
                taken[name].append((time.perf_counter() - start[0], time.thread_time() - start[1]))
    return {name: _spread(1000 * np.array(times)) for name, times in taken.items()}


def _spread(times: np.ndarray) -> dict[str, Any]:
    """Of milliseconds [calls, 2] on the clock and on the processor."""
    columns = zip(("clock", "processor"), times.T, strict=True)
    shares = {"min": 0, "p50": 50, "p95": 95}
    return {"calls": len(times)} | {
        where: {name: float(np.percentile(values, share)) for name, share in shares.items()}
        for where, values in columns
    }


def _kinds(predictor: Predictor) -> dict[str, Answer]:
    """Functions of questions that give the probabilities of each one's candidates."""
    program = trace(portable(predictor)).module()
    model = predictor._model
    with torch.inference_mode():
        known = model.embed_network()

    def next_road(asked: list[Question]) -> list[np.ndarray]:
        roads, times, destinations = map(list, zip(*asked, strict=True))
        return [answer.probabilities for answer in predictor.next_road(roads, times, destinations)]

    def exported(asked: list[Question]) -> list[np.ndarray]:
        with torch.inference_mode():
            roads, probabilities, _ = program(*_tensors(asked))
        return [row[kept] for row, kept in zip(probabilities.numpy(), (roads >= 0).numpy(), strict=True)]

    def whole(asked: list[Question]) -> list[np.ndarray]:
        return _whole(predictor, asked, known)

    def anew(asked: list[Question]) -> list[np.ndarray]:
        with torch.inference_mode():
            return _whole(predictor, asked, model.embed_network())

    return {"next_road": next_road, "exported": exported, "whole trip": whole, "anew": anew}


def _tensors(asked: Sequence[Question]) -> list[torch.Tensor]:
    length = np.array([len(roads) for roads, _, _ in asked])
    flat = [np.concatenate([question[part] for question in asked]) for part in (0, 1)]
    padded = [ragged.pad(values, length, int(length.max()), 0) for values in flat]
    return [torch.from_numpy(array) for array in (*padded, length, np.array([goal for _, _, goal in asked]))]


@torch.inference_mode()
def _whole(predictor: Predictor, asked: Sequence[Question], known: NetworkEmbedding) -> list[np.ndarray]:
    length = np.array([len(roads) + 1 for roads, _, _ in asked])
    trips = Trips(
        roads=np.concatenate([np.append(roads, goal) for roads, _, goal in asked]).astype(np.int32),
        times=np.concatenate([np.append(times, times[-1]) for _, times, _ in asked]),
        offsets=ragged.offsets(length),
        source_rows=np.arange(len(asked)),
    )
    batch = build_batch(predictor.network, trips, np.arange(len(asked)), predictor.candidate_top_k)
    output = predictor._model(batch, known)
    predictor._model.candidate_times(batch, known, output)
    last = np.cumsum(length - 1) - 1
    logits, exists = output.logits[last].double(), batch.layout.exists[last]
    return [row[kept].numpy() for row, kept in zip(logits.softmax(-1), exists, strict=True)]


def _compare(kinds: dict[str, Answer], asked: list[Question]) -> None:
    first, *others = (np.concatenate(answer(asked)) for answer in kinds.values())
    for name, other in zip(list(kinds)[1:], others, strict=True):
        if other.shape != first.shape or np.abs(other - first).max() > TOLERANCE:
            raise BenchmarkError(f"latency: next_road and {name} do not agree")


def _table(batch: int, found: dict[str, Any]) -> Table:
    columns = [(where, name) for where in ("processor", "clock") for name in ("min", "p50", "p95")]
    rows = [[name, *(f"{taken[where][share]:.2f}" for where, share in columns)] for name, taken in found.items()]
    header = ["", *(f"{where}: {name}" for where in ("processor", "clock") for name in ("least", "median", "95 %"))]
    return Table(f"{batch} question{'s' if batch > 1 else ''} a call, ms", header, rows)


def _notes(settings: dict[str, Any], figures: dict[int, dict[str, Any]], embed_s: float) -> list[str]:
    one = figures[min(figures)]["next_road"]
    return [
        f"{settings['city']}, {settings['roads']:,} roads, HOSER's default widths, one thread; median trip so far: "
        f"{settings['steps_median']:.0f} roads. Embedding the network, once at loading: {embed_s:.2f} s.",
        f"Goal: one question in {GOAL_MS:g} ms of a core. Median {one['processor']['p50']:.2f} ms.",
        f"The load was {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores: where that is more, times on the clock "
        "hold what a call has waited for others, and those on the processor are longer, too.",
    ]
