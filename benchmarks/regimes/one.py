"""One run in a process of its own: trained, measured on the test split, and its result written.

    python -m benchmarks.regimes.one OUT --arm NAME --trips N --seed S --data STORE --teacher ADDRESS [--sampled DIR]

OUT/result.json is there at the end, and not before.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.regimes import arms
from shared import config, files, log, ragged
from shared.store import Store
from shared.wire import ScoreQuery, ScoreReply
from student_trainer.data.batch import build_batch
from student_trainer.data.loader import by_length
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.teacher import Teacher
from student_trainer.model import upstream
from student_trainer.model.device import pick_device
from student_trainer.model.hoser import HOSER
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.runs.layout import RunFiles
from student_trainer.train import loss as losses
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import connect
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session
from student_trainer.train.trips import open_trips

BINS = 15


def _mixed(values: Any) -> Any:
    """Hashes of whole numbers: uint64 (the finaliser of splitmix64)."""
    mixed = np.asarray(values).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


class ControlTeacher:
    """A teacher whose answers are made worthless: even, or shuffled among the candidates of each position.

    The same candidates are shuffled in the same way each time: what is asked again is answered as before.
    """

    def __init__(self, teacher: Teacher, control: arms.Control) -> None:
        self._teacher, self._control = teacher, control
        self.revision, self.failure_stats = f"{teacher.revision}-{control}", teacher.failure_stats

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        done: Future[ScoreReply] = Future()
        asked = self._teacher.submit(query)

        def answered(reply: Future[ScoreReply]) -> None:
            try:
                found = reply.result()
                values = self._changed(query, np.asarray(found.log_probs))
                done.set_result(ScoreReply(values, None, found.weights_revision, found.queue_us, found.compute_us))
            except Exception as error:  # handed on as it came
                done.set_exception(error)

        asked.add_done_callback(answered)
        return done

    def _changed(self, query: ScoreQuery, log_probs: Any) -> Any:
        length = query.candidate_lengths.astype(np.int64)
        if self._control == "uniform":
            return np.repeat(-np.log(np.maximum(length, 1)), length).astype(np.float16)
        row = ragged.rows(length)
        candidates = np.bincount(row, _mixed(query.candidate_tokens) >> np.uint64(40), len(length)).astype(np.uint64)
        return log_probs[np.lexsort((_mixed(256 * candidates[row] + ragged.positions(length).astype(np.uint64)), row))]

    def close(self) -> None:
        """See `Teacher`."""
        self._teacher.close()


@torch.no_grad()
def measure(model: HOSER, store: Store, device: torch.device, scale: Any, batch_size: int = 128) -> dict[str, float]:
    """Next roads of the whole test split: accuracy, nll (nats), ece (15 bins of equal width), time_error."""
    network, trips = RoadNetwork.load(store), store.trips("test")
    model.eval()
    embedded = model.embed_network()
    hits: list[Tensor] = []
    confidence: list[Tensor] = []
    nll, time_error, labels = 0.0, 0.0, 0
    for index in by_length(trips.lengths, batch_size):
        batch = build_batch(network, trips, index).map(lambda tensor: tensor.to(device))
        output = model(batch, embedded)
        times = model.label_times(batch, embedded, output)
        best = output.logits.softmax(-1).max(-1)
        hits.append(best.indices == batch.label)
        confidence.append(best.values)
        nll += float(losses.next_road_loss(output.logits, batch.label))
        errors = losses.time_errors(times, batch.seconds, scale)
        time_error += float(torch.where(batch.label >= 0, errors, 0).sum())
        labels += int((batch.label >= 0).sum())
    hit, sure = torch.cat(hits).cpu().numpy(), torch.cat(confidence).cpu().numpy().astype(np.float64)
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=hit - sure, minlength=BINS)
    return {
        "accuracy": float(hit.mean()),
        "nll": nll / labels,
        "ece": float(np.abs(gaps).sum() / len(hit)),
        "time_error": time_error / labels,
    }


def main() -> int:
    """Makes one run."""
    parser = argparse.ArgumentParser("benchmarks.regimes.one", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--trips", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", default="none")
    parser.add_argument("--sampled", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    log.setup("warning")
    start = time.monotonic()
    arm, regime = arms.arm(given.arm), next(one for one in arms.REGIMES if one.trips == given.trips)
    told = ["runtime.amp=off", "log.tensorboard=false", "log.progress=false"]
    told += [f"data={given.data}", f"out={given.out}", "runtime.threads=1", f"runtime.device={given.device}"]
    told += [f"teacher={given.teacher}"] if arm.teaches else []
    told += [f"batch.sampled={given.sampled}"] if arm.samples else []
    torch.set_num_threads(1)
    store, device = Store(given.data), pick_device(given.device, 0, 1, "device")

    def settings_of(is_mixed: bool) -> TrainConfig:
        recipe = arms.overrides(arm, regime, given.seed, is_mixed)
        return config.load(TrainConfig, "train", [], [*recipe, *told, *given.overrides])

    settings = settings_of(arm.samples)
    if arm.samples and open_trips(store, settings).first_sampled is None:  # `train` leaves them out
        settings = settings_of(is_mixed=False)
    teacher: Teacher = connect(settings, store)
    if arm.control != "none":
        teacher = ControlTeacher(teacher, arm.control)
    given.out.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(teacher):
        session = Session(settings, store, Runtime.of(settings.runtime, device), teacher)
        began = time.monotonic()
        session.train()
        seconds = time.monotonic() - began
    best = checkpoints.load(RunFiles(given.out).best)
    assert isinstance(session.model, HOSER)
    upstream.load_into(session.model, best.model)
    result = {
        "arm": arm.name, "trips": regime.trips, "seed": given.seed, "steps": session.progress.step,
        "rate": settings.optim.learning_rate,
        "seconds": round(seconds, 1), "overhead_seconds": round(began - start, 1), "device": str(device),
        "best": session.progress.history[session.progress.best_epoch - 1], "last": session.progress.history[-1],
        "test": measure(session.model, store, device, session.scale),
        "target": None if session.feed.target is None else session.feed.target.coefficients.tolist(),
    }  # fmt: skip
    files.write_json(given.out / "result.json", result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
