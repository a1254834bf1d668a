"""Trips under way -> what a student reads to tell their next roads.

The features are those of `batch`, from the same functions; no road after the last is needed, and only the last
step's candidates are looked up.

Shapes: B trips, T longest of them in steps, C most candidates of a trip's last road.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Bool, Float32, Int64, Integers
from shared.errors import DataError
from student_trainer.data.batch import candidates_of, is_weekend, pairs_of, time_of_day
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import together


@dataclasses.dataclass(frozen=True, eq=False)
class UnderWay:
    """Trips so far, flat: P steps of B trips.

    Attributes:
        road: int64 [P] roads entered, trip after trip; time: int64 [P] when, seconds since 1970.
        length: int64 [B] roads of each trip, at least 1.
        destination: int64 [B] roads.
    """

    road: Int64
    time: Int64
    length: Int64
    destination: Int64

    @classmethod
    def of(
        cls,
        network: RoadNetwork,
        roads: Sequence[Integers],
        times: Sequence[Integers],
        destinations: Integers,
    ) -> UnderWay:
        """Checks and joins trips.

        Raises:
            DataError: naming the trip and what is wrong with it.
        """
        if not len(roads) == len(times) == len(destinations):
            raise DataError(
                f"{len(roads)} lists of roads, {len(times)} of times, {len(destinations)} destinations: one each a trip"
            )
        destination = _integers(destinations, "the destinations")
        parts = [
            (_integers(road, f"trip {i}: roads"), _integers(time, f"trip {i}: times"))
            for i, (road, time) in enumerate(zip(roads, times, strict=True))
        ]
        for i, (road, time) in enumerate(parts):
            _check(i, road, time, int(destination[i]), network.num_roads)
        none = np.empty(0, np.int64)
        return cls(
            road=np.concatenate([none, *(road for road, _ in parts)]),
            time=np.concatenate([none, *(time for _, time in parts)]),
            length=np.array([len(road) for road, _ in parts], np.int64),
            destination=destination,
        )

    def __len__(self) -> int:
        return len(self.length)

    @property
    def weekend(self) -> Bool:
        """bool [B]: whether the trip began at one."""
        return is_weekend(self.time[ragged.offsets(self.length)[:-1]])

    def take(self, trips: Int64) -> UnderWay:
        """The given trips."""
        at = ragged.slices(ragged.offsets(self.length)[trips], self.length[trips])
        return UnderWay(self.road[at], self.time[at], self.length[trips], self.destination[trips])


def _integers(values: Integers, what: str) -> Int64:
    """One list of whole numbers as int64 [n]."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        raise DataError(f"{what}: expected a list of whole numbers")
    return array.astype(np.int64)


def _check(trip: int, road: Int64, time: Int64, destination: int, num_roads: int) -> None:
    """Raises `DataError` if a trip cannot be."""
    if not len(road):
        raise DataError(f"trip {trip} has no road; give at least the one that it is on")
    if len(road) != len(time):
        raise DataError(f"trip {trip} has {len(road)} roads and {len(time)} times; give the entry time of each road")
    wrong = (road < 0) | (road >= num_roads)
    if wrong.any():
        raise DataError(f"trip {trip}: road {road[wrong][0]} is not in the network; roads are 0 to {num_roads - 1}")
    if not 0 <= destination < num_roads:
        raise DataError(
            f"trip {trip}: the destination {destination} is not in the network; roads are 0 to {num_roads - 1}"
        )
    if (np.diff(time) < 0).any():
        raise DataError(f"trip {trip}: time goes backwards after place {int(np.argmax(np.diff(time) < 0))}")


@dataclasses.dataclass(frozen=True, eq=False)
class PartialBatch:
    """What one forward pass reads.

    Attributes:
        road: int64 [B, T], right-padded with 0.
        temporal: float32 [B, T]; distance, interval: float32 [B, T, T], as of `Batch`.
        length: int64 [B]; destination: int64 [B].
        candidate_road: int64 [B, C], right-padded with 0; candidate_distance, candidate_angle: float32 [B, C].
        candidate_length: int64 [B]; on the host.
    """

    road: Tensor
    temporal: Tensor
    distance: Tensor
    interval: Tensor
    length: Tensor
    destination: Tensor
    candidate_road: Tensor
    candidate_distance: Tensor
    candidate_angle: Tensor
    candidate_length: Int64

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """All but the number of candidates, in order, on a device: there by one copy."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return tuple(together([tensor.numpy() for tensor in fields if isinstance(tensor, Tensor)], device))


def build_partial(network: RoadNetwork, trips: UnderWay, top_k: int = 0, max_steps: int = 0) -> PartialBatch:
    """The batch of some trips.

    Args:
        network: the road network.
        trips: at least one.
        top_k, max_steps: as for `build_batch`.
    """
    weekend, kept = trips.weekend, trips.length
    road, time = trips.road, trips.time
    if max_steps and int(kept.max()) > max_steps:
        kept = np.minimum(kept, max_steps)
        step = ragged.slices(ragged.offsets(trips.length)[1:] - kept, kept)
        road, time = road[step], time[step]
    temporal = time_of_day(time, np.repeat(weekend, kept))
    distance, interval = pairs_of(network, road, temporal, kept)
    last = road[np.cumsum(kept) - 1]
    candidates = candidates_of(network, last, np.full(len(kept), -1, np.int32), trips.destination, top_k)
    width = int(kept.max())

    def padded(values: Int64 | Float32) -> Tensor:
        columns = max(int(candidates.length.max()), 1)
        return torch.from_numpy(ragged.pad(values, candidates.length, columns, 0))

    return PartialBatch(
        road=torch.from_numpy(ragged.pad(road, kept, width, 0)),
        temporal=torch.from_numpy(ragged.pad(temporal, kept, width, 0)),
        distance=torch.from_numpy(distance),
        interval=torch.from_numpy(interval),
        length=torch.from_numpy(kept),
        destination=torch.from_numpy(trips.destination),
        candidate_road=padded(candidates.road),
        candidate_distance=padded(candidates.distance),
        candidate_angle=padded(candidates.angle),
        candidate_length=candidates.length,
    )
