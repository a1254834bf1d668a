"""Trips -> batch: every feature that the student reads.

Definitions are those of public HOSER, so that its weights fit: some look odd and are
kept on purpose (see `RoadNetwork.end_bearing`). Positions are flat: trip after trip, step after step;
candidates are flat within positions. Only the trip encoder's inputs are padded.

Shapes: B trips, T longest trip in steps, P valid positions, K candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Bool, Float32, Int32, Int64
from student_trainer.data import kernels
from student_trainer.data.mixed import Numbered
from student_trainer.data.network import RoadNetwork

IGNORED_LABEL = -100
"""Label of a position whose true road is not among its candidates."""

SECONDS_PER_DAY = 86_400
MINUTES_PER_DAY = 1_440


@dataclasses.dataclass(frozen=True, eq=False)
class CandidateLayout:
    """Flat candidates [K] <-> padded [P, C], C being the most that a position has.

    Made on the host, so that an accelerator is never waited for to know how many there are.

    Attributes:
        position: int64 [K] position of each candidate.
        column: int64 [K] its index among the position's candidates.
        exists: bool [P, C].
    """

    position: Tensor
    column: Tensor
    exists: Tensor

    @classmethod
    def of(cls, length: Int64) -> CandidateLayout:
        """The layout of positions with `length` [P] candidates."""
        exists = np.arange(length.max()) < length[:, None]
        arrays = (ragged.rows(length), ragged.positions(length), exists)
        return cls(*map(torch.from_numpy, arrays))

    def pad(self, values: Tensor, fill: float) -> Tensor:
        """Flat values [K] as [P, C]."""
        padded = values.new_full(self.exists.shape, fill)
        return padded.index_put((self.position, self.column), values)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass and its loss need.

    Attributes:
        trips: int64 [B] number of each trip in its split, or among `mixed` trips.
        road: int64 [B, T] road of each step (right-padded with 0).
        temporal: float32 [B, T] time of day in [0, 1), negated at weekends.
        distance: float32 [B, T, T] metres from a step (row) to one before it (column), clipped to 1 km, in km; 0 for
            all other pairs, which the trip encoder never reads.
        interval: float32 [B, T, T] minutes between the same steps, clipped to 5, in fifths.
        length: int64 [B] steps per trip; P = sum.
        destination: int64 [B] last road.
        candidate_length: int64 [P]; 0 in a position that pads a batch further.
        candidate_road: int64 [K].
        candidate_distance, candidate_angle: float32 [K], the navigator's two metrics.
        candidate_token: int64 [K] cell of the candidate.
        label: int64 [P] index of the next road among the candidates, or -100.
        seconds: float32 [P] travel time to the next road.
        padded_step: int64 [P] index of each position among the B * T padded steps.
        layout: where candidates lie among padded ones.
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
    padded_step: Tensor
    layout: CandidateLayout

    @property
    def positions(self) -> int:
        """P."""
        return len(self.label)

    @property
    def roads_read(self) -> tuple[Tensor, Tensor]:
        """Flat ids of all roads whose embeddings the student reads, repeated, padding included."""
        return self.road.flatten(), self.candidate_road

    @property
    def is_real(self) -> Tensor:
        """Which positions are of a trip, rather than padding: bool [P]; see `packing`."""
        return self.candidate_length > 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same with other tensors."""
        tensors = {f.name: function(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "layout"}
        return Batch(layout=CandidateLayout(*map(function, vars(self.layout).values())), **tensors)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """What the student may choose from at P positions, K roads in all.

    Attributes:
        length: int64 [P] candidates per position.
        road: int64 [K]; distance, angle: float32 [K], the navigator's two metrics.
        label: int64 [P] index of the next road among the position's candidates, or -100.
    """

    length: Int64
    road: Int64
    distance: Float32
    angle: Float32
    label: Int64


def build_batch(network: RoadNetwork, trips: Numbered, index: Int64, top_k: int = 0, max_steps: int = 0) -> Batch:
    """The batch of the given trips.

    Args:
        network: the road network.
        trips: a split, or another set of trips.
        index: int64 [B] trips of it.
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
    weekend = is_weekend(chosen.times[first])
    candidates = candidates_of(network, road, chosen.roads[step + 1], np.repeat(destination, kept), top_k)

    width = int(kept.max())
    temporal = time_of_day(time, np.repeat(weekend, kept))
    distance, interval = pairs_of(network, road, temporal, kept)
    arrays = {
        "trips": index.astype(np.int64),
        "road": ragged.pad(road, kept, width, 0),
        "temporal": ragged.pad(temporal, kept, width, 0),
        "distance": distance,
        "interval": interval,
        "length": kept,
        "destination": destination,
        "candidate_length": candidates.length,
        "candidate_road": candidates.road,
        "candidate_distance": candidates.distance,
        "candidate_angle": candidates.angle,
        "candidate_token": network.road_token[candidates.road].astype(np.int64),
        "label": candidates.label,
        "seconds": (chosen.times[step + 1] - time).astype(np.float32),
        "padded_step": ragged.slices(np.arange(len(kept)) * width, kept),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return Batch(layout=CandidateLayout.of(candidates.length), **tensors)


def is_weekend(departure: Int64) -> Bool:
    """Whether trips with these first times, seconds since 1970, are of a Saturday or a Sunday."""
    return np.asarray((departure // SECONDS_PER_DAY + 3) % 7 >= 5)  # 1970-01-01 was a Thursday


def time_of_day(time: Int64, weekend: Bool) -> Float32:
    """Time of day in [0, 1), negated in trips of a weekend.

    Args:
        time: int64 [P] entry times, seconds since 1970.
        weekend: bool [P] whether the step's trip began at one.
    """
    fraction = (time % SECONDS_PER_DAY / 60 / MINUTES_PER_DAY).astype(np.float32)
    return np.where(weekend, -fraction, fraction)


def minutes_of_day(temporal: Float32) -> Float32:
    """What `time_of_day` gives, in minutes: the intervals between steps are differences of these."""
    return temporal * np.float32(MINUTES_PER_DAY)


def pairs_of(network: RoadNetwork, road: Int64, temporal: Float32, length: Int64) -> tuple[Float32, Float32]:
    """Distance and interval of every step to those before it.

    Minutes are float32 times of day as upstream has them: the interval saturates across midnight.
    """
    width = int(length.max())
    distance, interval = np.zeros((2, len(length), width, width), np.float32)
    minutes = minutes_of_day(temporal)
    point = network.centroid_on_sphere[road]
    kernels.fill_pairs(distance, interval, point, minutes, length)
    return distance, interval


def candidates_of(
    network: RoadNetwork,
    road: Int64,
    next_road: Int32,
    destination: Int64,
    top_k: int = 0,
) -> Candidates:
    """The successors of roads, with their metrics.

    Args:
        network: the road network.
        road: int64 [P].
        next_road: int32 [P], for the labels; -1 where there is none.
        destination: int64 [P].
        top_k: as for `build_batch`.
    """
    first = network.successor_offsets[road]
    length = network.successor_offsets[road + 1] - first
    count = int(length.sum())
    distance = np.empty(count, np.float32)
    found = Candidates(
        length=length,
        road=np.empty(count, np.int64),
        distance=distance,
        angle=np.empty(count, np.float32),
        label=np.full(len(road), IGNORED_LABEL),
    )
    kernels.fill_candidates(
        found.road,
        found.distance,
        found.angle,
        found.label,
        first,
        length,
        next_road,
        destination,
        network.end_bearing(road, destination),
        network.successors,
        network.successor_bearing,
        network.centroid_on_sphere,
    )
    np.log1p(distance, out=distance)
    return _keep_nearest(found, top_k) if top_k else found


def _keep_nearest(candidates: Candidates, k: int) -> Candidates:
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
    new_label = np.full(len(kept), IGNORED_LABEL, np.int64)
    new_label[kept] = ragged.positions(new_length)
    labelled = candidates.label >= 0
    true = ragged.offsets(length)[:-1] + np.where(labelled, candidates.label, 0)
    return Candidates(
        length=new_length,
        road=candidates.road[kept],
        distance=candidates.distance[kept],
        angle=candidates.angle[kept],
        label=np.where(labelled, new_label[np.minimum(true, len(kept) - 1)], IGNORED_LABEL),
    )
