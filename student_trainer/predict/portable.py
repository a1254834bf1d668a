"""A student that needs nothing of this project: roads and times in, next roads out, as one graph of torch's operations.

What `data` computes with compiled code on float64 is written here with tensors, for `torch.export` follows these
alone; a test compares the two. Road network, embeddings and weights are buffers.

Shapes: N roads, C most successors of a road; B trips, T longest of them in steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from shared import ragged
from student_trainer.data.batch import MINUTES_PER_DAY, SECONDS_PER_DAY
from student_trainer.data.geometry import EARTH_RADIUS_M
from student_trainer.data.kernels import DISTANCE_CLIP_M, INTERVAL_CLIP_MIN
from student_trainer.data.network import RoadNetwork
from student_trainer.model.time_scale import TimeScale

NO_ROAD = -1
"""Stands where a road has fewer successors than another."""


class PortableStudent(nn.Module):
    """`Predictor.next_road` as tensors -> tensors."""

    successors: Tensor
    successor_bearing: Tensor
    point: Tensor
    end_vertex: Tensor

    def __init__(self, last_step: nn.Module, network: RoadNetwork, scale: TimeScale, top_k: int) -> None:
        """Takes what a `Predictor` has, on the CPU."""
        super().__init__()
        degree = np.diff(network.successor_offsets)
        columns = max(int(degree.max()), 1)
        arrays = {
            "successors": ragged.pad(network.successors.astype(np.int64), degree, columns, NO_ROAD),
            "successor_bearing": ragged.pad(network.successor_bearing, degree, columns, 0.0),
            "point": network.centroid_on_sphere,
            "end_vertex": network.end_vertex,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))
        self.last_step = last_step
        self.mu, self.sigma = scale.mu, scale.sigma
        self.top_k = top_k if 0 < top_k < columns else 0

    def forward(self, roads: Tensor, times: Tensor, length: Tensor, destination: Tensor) -> tuple[Tensor, ...]:
        """The candidates of each trip's last road.

        Args:
            roads, times: int64 [B, T], right-padded with anything that is a road, a time.
            length: int64 [B], at least 1; destination: int64 [B].

        Returns:
            int64 [B, C] roads, -1 where there is none; float64 [B, C] probabilities, 0 there; float32 [B, C] seconds.
        """
        last = roads.gather(1, length[:, None] - 1).squeeze(1)
        temporal = self._time_of_day(times)
        candidate, distance, angle = self._candidates(last, destination)
        exists = candidate != NO_ROAD
        logits, standardised = self.last_step(
            roads, temporal, *self._pairs(roads, temporal), length, destination, candidate.clamp(min=0), distance, angle
        )
        logits = logits.double().masked_fill(~exists, -torch.inf)
        probabilities = torch.where(exists, logits.softmax(-1), 0.0)
        seconds = torch.expm1(standardised * self.sigma + self.mu).clamp(min=0)
        return candidate, probabilities, torch.where(exists, seconds, 0.0)

    def _time_of_day(self, times: Tensor) -> Tensor:
        """As `batch.time_of_day`, float32 [B, T]."""
        day = torch.div(times[:, :1], SECONDS_PER_DAY, rounding_mode="floor")
        weekend = (day + 3) % 7 >= 5
        fraction = ((times % SECONDS_PER_DAY).double() / 60 / MINUTES_PER_DAY).float()
        return torch.where(weekend, -fraction, fraction)

    def _pairs(self, roads: Tensor, temporal: Tensor) -> tuple[Tensor, Tensor]:
        """As `batch.pairs_of`, float32 [B, T, T]; with those pairs, too, that are hidden."""
        point, minutes = self.point[roads], temporal * MINUTES_PER_DAY
        metres = _metres(point[:, :, None], point[:, None])
        distance = (metres.clamp(max=DISTANCE_CLIP_M) / DISTANCE_CLIP_M).float()
        clip = float(INTERVAL_CLIP_MIN)
        return distance, (minutes[:, :, None] - minutes[:, None]).abs().clamp(max=clip) / clip

    def _candidates(self, last: Tensor, destination: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `batch.candidates_of`: roads [B, C], float32 distance and angle."""
        road = self.successors[last]
        metres = _metres(self.point[road.clamp(min=0)], self.point[destination][:, None]).float()
        beyond = metres.masked_fill(road == NO_ROAD, torch.inf)
        distance = torch.log1p((metres - beyond.amin(-1, keepdim=True)) / 100)
        turn = (self.successor_bearing[last] - self._bearing(last, destination)[:, None]).abs()
        angle = (torch.minimum(turn, 2 * math.pi - turn) / math.pi).float()
        if self.top_k:
            farthest_last = distance.masked_fill(road == NO_ROAD, torch.inf)
            rank = farthest_last.argsort(stable=True, dim=-1).argsort(stable=True, dim=-1)
            road = road.masked_fill(rank >= self.top_k, NO_ROAD)
        return road, distance.masked_fill(road == NO_ROAD, 0.0), angle

    def _bearing(self, road: Tensor, other: Tensor) -> Tensor:
        """As `RoadNetwork.end_bearing`, float64 [B]: upstream's call, with longitude for latitude."""
        (lng1, lat1), (lng2, lat2) = self.end_vertex[road].unbind(-1), self.end_vertex[other].unbind(-1)
        angle = torch.atan2(lat2 - lat1, torch.cos(torch.deg2rad(lat1)) * (lng2 - lng1))
        return torch.where(angle < 0, angle + 2 * math.pi, angle)


def _metres(point1: Tensor, point2: Tensor) -> Tensor:
    """Great-circle distance of points [..., 3]: latitude and longitude in radians, cosine of the latitude."""
    half = (point2[..., :2] - point1[..., :2]) / 2
    sine = half.sin().square()
    a = sine[..., 0] + point1[..., 2] * point2[..., 2] * sine[..., 1]
    return 2 * EARTH_RADIUS_M * a.sqrt().clamp(max=1.0).asin()
