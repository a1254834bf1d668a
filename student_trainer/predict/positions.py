"""What a student says at every position of some trips: each candidate's logit and travel time."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from shared import progress, ragged
from shared.arrays import Int64
from shared.store import Trips
from student_trainer.data.batch import Batch, build_batch
from student_trainer.data.loader import Prefetcher, by_length, one_late
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import Packed
from student_trainer.model.device import Fetching, float32_products
from student_trainer.model.student import NetworkEmbedding, Student
from student_trainer.model.time_scale import TimeScale
from student_trainer.predict.config import CutConfig

LOOKAHEAD = 2
"""Batches that a thread builds ahead."""


@torch.inference_mode()
def predict(
    model: Student, network: RoadNetwork, trips: Trips, scale: TimeScale, cut: CutConfig, device: torch.device
) -> dict[str, npt.NDArray]:
    """Predictions of P positions with K candidates, in the split's order; products of float32 without TF32.

    Returns:
        trip, step: int64 [P]; label: int64 [P], index among the candidates (-100 if cut off);
        candidate_offsets: int64 [P + 1]; road: int64 [K]; logit, seconds,
        log1p_seconds_standardised: float32 [K].
    """
    batches = list(by_length(trips.lengths, cut.batch_size))

    def build(index: Int64) -> _Built:
        batch = build_batch(network, trips, index, cut.candidate_top_k, cut.max_steps)
        packed = None if device.type == "cpu" else Packed.of(batch, pinned=device.type == "cuda")
        return _Built(_known(batch, trips, index), batch, packed)

    parts = []
    with (
        float32_products(device, tf32=False),  # whatever trained before in this process
        Prefetcher(build, batches, LOOKAHEAD) as built,
    ):
        embedding = model.embed_network()
        asked = one_late((item.known, answers(model, embedding, item.on(device))) for item in built)
        for _, (known, fetching) in zip(progress.track(batches, "next roads", "batch"), asked, strict=True):
            logit, times = fetching.values()
            found = {"logit": logit, "seconds": scale.seconds(times), "log1p_seconds_standardised": times}
            parts.append(known | found)
    return _in_order({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


@dataclasses.dataclass(frozen=True, eq=False)
class _Built:
    """A batch on the host, what is known of its positions, and the batch as it travels to an accelerator."""

    known: dict[str, npt.NDArray]
    batch: Batch
    packed: Packed | None

    def on(self, device: torch.device) -> Batch:
        """The batch there, which the host does not wait for."""
        return self.batch if self.packed is None else self.packed.to(device).unpack()


def answers(model: Student, embedding: NetworkEmbedding, batch: Batch) -> Fetching:
    """Logits and standardised log1p seconds of a batch's candidates, float32 [2, K], on their way to the host."""
    output = model(batch, embedding)
    logits = output.logits[batch.layout.position, batch.layout.column]
    return Fetching(torch.stack([logits, model.candidate_times(batch, embedding, output)]))


def _known(batch: Batch, trips: Trips, index: Int64) -> dict[str, npt.NDArray]:
    """Where the positions of some trips are, and what may follow, in the batch's order."""
    kept = batch.length.numpy()
    first_step = trips.lengths[index] - 1 - kept
    return {
        "trip": np.repeat(index, kept),
        "step": ragged.positions(kept) + np.repeat(first_step, kept),
        "candidate_length": batch.candidate_length.numpy(),
        "label": batch.label.numpy(),
        "road": batch.candidate_road.numpy(),
    }


def _in_order(arrays: dict[str, npt.NDArray]) -> dict[str, npt.NDArray]:
    """Sorts the positions by trip and step, and their candidates with them."""
    length = arrays.pop("candidate_length")
    start = ragged.offsets(length)[:-1]
    order = np.lexsort((arrays["step"], arrays["trip"]))
    candidate = ragged.slices(start[order], length[order])
    per_position = {name: arrays[name][order] for name in ("trip", "step", "label")}
    per_candidate = {name: arrays[name][candidate] for name in arrays if name not in per_position}
    return {**per_position, "candidate_offsets": ragged.offsets(length[order]), **per_candidate}


def accuracy_of(arrays: dict[str, npt.NDArray]) -> float:
    """Share of positions whose first most likely candidate is the next road."""
    offsets, label = arrays["candidate_offsets"], arrays["label"]
    length = np.diff(offsets)
    best = np.maximum.reduceat(arrays["logit"], offsets[:-1])
    is_best = arrays["logit"] == np.repeat(best, length)
    slot = np.where(is_best, ragged.positions(length), np.iinfo(np.int64).max)
    return float(np.mean(np.minimum.reduceat(slot, offsets[:-1]) == label))
