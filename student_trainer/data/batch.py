"""Trips -> batch: every feature that the student reads, vectorised over the batch.

Definitions are those of public HOSER, so that its weights fit: some look odd and are
kept on purpose (see `_angles`). Positions are flat: trip after trip, step after step;
candidates are flat within positions. Only the trip encoder's inputs are padded.

Shapes: B trips, T longest trip in steps, P valid positions, K candidates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from shared.store import Trips
from student_trainer.data import geometry
from student_trainer.data.network import RoadNetwork

IGNORED_LABEL = -100
"""Label of a position whose true road is not among its candidates."""

DISTANCE_CLIP_M = 1000.0
INTERVAL_CLIP_MIN = 5.0
SECONDS_PER_DAY = 86_400
MINUTES_PER_DAY = 1_440


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass and its loss need.

    Attributes:
        trips: int64 [B] index of each trip in its split.
        road: int64 [B, T] road of each step (right-padded with 0).
        temporal: float32 [B, T] time of day in [0, 1), negated at weekends.
        distance: float32 [B, T, T] metres between steps, clipped to 1 km, in km.
        interval: float32 [B, T, T] minutes between steps, clipped to 5, in fifths.
        length: int64 [B] steps per trip; P = sum.
        destination: int64 [B] last road.
        candidate_length: int64 [P].
        candidate_road: int64 [K].
        candidate_distance, candidate_angle: float32 [K], the navigator's two metrics.
        candidate_token: int64 [K] cell of the candidate.
        label: int64 [P] index of the next road among the candidates, or -100.
        seconds: float32 [P] travel time to the next road.
    """

    trips: Tensor
    road: Tensor
    temporal: Tensor
    distance: Tensor
    interval: Tensor
    length: Tensor
    destination: Tensor
    candidate_length: Tensor
    candidate_road: Tensor
    candidate_distance: Tensor
    candidate_angle: Tensor
    candidate_token: Tensor
    label: Tensor
    seconds: Tensor

    @property
    def positions(self) -> int:
        """P."""
        return len(self.label)

    @property
    def roads_read(self) -> tuple[Tensor, Tensor]:
        """Flat ids of all roads whose embeddings the student reads, repeated, padding included."""
        return self.road.flatten(), self.candidate_road

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy is asynchronous."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)})

    def pin(self) -> Batch:
        """The batch in page-locked memory."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidates:
    length: npt.NDArray[np.int64]
    road: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]
    angle: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]


def build_batch(
    network: RoadNetwork, trips: Trips, index: npt.NDArray[np.int64], top_k: int = 0, max_steps: int = 0
) -> Batch:
    """The batch of the given trips.

    Args:
        network: the road network.
        trips: a split.
        index: int64 [B] trips of the split.
        top_k: keep at most this many candidates per position, nearest to the destination
            first; 0 keeps all. The label follows; a label cut off becomes -100.
        max_steps: keep the last `max_steps` steps of longer trips; 0 keeps all.
    """
    chosen = trips.take(index)
    steps = chosen.lengths - 1
    kept = np.minimum(steps, max_steps) if max_steps else steps
    step = ragged.slices(chosen.offsets[:-1] + steps - kept, kept)  # of the flat trips, without the last roads
    first, last = chosen.offsets[:-1], chosen.offsets[1:] - 1

    road, time = chosen.roads[step].astype(np.int64), chosen.times[step]
    destination = chosen.roads[last].astype(np.int64)
    weekend = (chosen.times[first] // SECONDS_PER_DAY + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    candidates = _candidates(network, road, chosen.roads[step + 1], np.repeat(destination, kept))
    if top_k:
        candidates = _keep_nearest(candidates, top_k)

    width = int(kept.max())
    temporal = ragged.pad(_time_of_day(time, np.repeat(weekend, kept)), kept, width, 0)
    padded_road = ragged.pad(road, kept, width, 0)
    inside = np.arange(width) < kept[:, None]
    pair_inside = inside[:, :, None] & inside[:, None, :]
    arrays = {
        "trips": index.astype(np.int64),
        "road": padded_road,
        "temporal": temporal,
        "distance": _distances(network, padded_road) * pair_inside,
        "interval": _intervals(temporal) * pair_inside,
        "length": kept,
        "destination": destination,
        "candidate_length": candidates.length,
        "candidate_road": candidates.road,
        "candidate_distance": candidates.distance,
        "candidate_angle": candidates.angle,
        "candidate_token": network.road_token[candidates.road].astype(np.int64),
        "label": candidates.label,
        "seconds": (chosen.times[step + 1] - time).astype(np.float32),
    }
    return Batch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _time_of_day(time: npt.NDArray[np.int64], weekend: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    fraction = (time % SECONDS_PER_DAY / 60 / MINUTES_PER_DAY).astype(np.float32)
    return np.where(weekend, -fraction, fraction)


def _intervals(temporal: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Pairwise minutes, from float32 times of day as upstream has them; saturates across midnight."""
    minutes = np.abs(temporal[:, :, None] * MINUTES_PER_DAY - temporal[:, None, :] * MINUTES_PER_DAY)
    scaled: npt.NDArray[np.float32] = np.clip(minutes, 0, INTERVAL_CLIP_MIN) / INTERVAL_CLIP_MIN
    return scaled.astype(np.float32, copy=False)


def _distances(network: RoadNetwork, road: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    lat, lng = network.line_centroid[road, 0], network.line_centroid[road, 1]
    metres = geometry.haversine_m(lat[:, :, None], lng[:, :, None], lat[:, None, :], lng[:, None, :])
    return (np.clip(metres, 0, DISTANCE_CLIP_M) / DISTANCE_CLIP_M).astype(np.float32)


def _candidates(
    network: RoadNetwork,
    road: npt.NDArray[np.int64],
    next_road: npt.NDArray[np.int32],
    destination: npt.NDArray[np.int64],
) -> _Candidates:
    start = network.successor_offsets[road]
    length = network.successor_offsets[road + 1] - start
    candidate = network.successors[ragged.slices(start, length)].astype(np.int64)
    is_next = candidate == np.repeat(next_road, length)
    at_destination = np.repeat(destination, length)
    return _Candidates(
        length=length,
        road=candidate,
        distance=_detours(network, candidate, at_destination, length),
        angle=_angles(network, np.repeat(road, length), candidate, at_destination),
        label=ragged.positions(length)[is_next],
    )


def _detours(
    network: RoadNetwork,
    candidate: npt.NDArray[np.int64],
    destination: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """log1p of the metres to the destination beyond the nearest candidate's, in hundreds; in float32, as upstream."""
    here, there = network.line_centroid[candidate], network.line_centroid[destination]
    metres = geometry.haversine_m(here[:, 0], here[:, 1], there[:, 0], there[:, 1]).astype(np.float32)
    nearest = np.minimum.reduceat(metres, ragged.offsets(length)[:-1])
    return np.asarray(np.log1p((metres - np.repeat(nearest, length)) / 100), np.float32)


def _angles(
    network: RoadNetwork,
    road: npt.NDArray[np.int64],
    candidate: npt.NDArray[np.int64],
    destination: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Angle at the road's end between the candidate's end and the destination's end, over pi.

    Longitude and latitude are swapped in the call, as they are in upstream's training
    and inference: weights depend on it.
    """
    lat, lng = network.end_vertex[:, 0], network.end_vertex[:, 1]
    towards_candidate = geometry.bearing(lng[road], lat[road], lng[candidate], lat[candidate])
    towards_destination = geometry.bearing(lng[road], lat[road], lng[destination], lat[destination])
    return np.asarray(geometry.turn(towards_candidate, towards_destination) / np.pi, np.float32)


def _keep_nearest(candidates: _Candidates, k: int) -> _Candidates:
    """Keeps the k candidates with the smallest distance per position, in their old order.

    Ties keep the earlier candidate; where there are at most k, nothing changes.
    """
    length = candidates.length
    if not len(length) or int(length.max()) <= k:
        return candidates
    position = ragged.rows(length)
    order = np.lexsort((candidates.distance, position))  # stable: ties stay in their order
    rank = np.empty(len(order), np.int64)
    rank[order] = ragged.positions(length)
    kept = rank < k
    new_length = np.minimum(length, k)
    new_slot = np.full(len(kept), IGNORED_LABEL, np.int64)
    new_slot[kept] = ragged.positions(new_length)
    return _Candidates(
        length=new_length,
        road=candidates.road[kept],
        distance=candidates.distance[kept],
        angle=candidates.angle[kept],
        label=new_slot[ragged.offsets(length)[:-1] + candidates.label],
    )
