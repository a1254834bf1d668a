"""Beam search as it is commonly written: one trip after another, and at every depth the whole of each beam anew.

A depth makes the features of all beams from their first road on, runs the model over all their steps, and reads the
last one: over one beam after another, or over all beams of the trip at once. The network is embedded once. Lists and
dictionaries of Python; `student_trainer.generate` is not used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.straightforward.collate import candidates_of, matrices_by_trip, times_of_day
from benchmarks.straightforward.student import StraightforwardHOSER
from student_trainer.data.network import RoadNetwork
from student_trainer.model.time_scale import TimeScale


@dataclasses.dataclass(frozen=True)
class Path:
    """Roads, when each is entered, and the log-probability of all choices."""

    roads: list[int]
    times: list[int]
    log_prob: float


@dataclasses.dataclass(frozen=True)
class Choices:
    """Of a path: where it may go on, log-probabilities, and whole seconds until it is there."""

    road: list[int]
    log_prob: list[float]
    seconds: list[int]


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What the trip encoder reads of B paths of T steps; names as `PaddedTensors` has them."""

    length: Tensor
    temporal: Tensor
    distance: Tensor
    interval: Tensor


class Student:
    """A model that starts over with every question."""

    def __init__(self, model: StraightforwardHOSER, network: RoadNetwork, scale: TimeScale, top_k: int) -> None:
        self._model, self._network, self._scale, self._top_k = model, network, scale, top_k
        self._dtype = model.road_network_encoder.road_id_emb.weight.dtype
        with torch.inference_mode():
            self._roads, self._zones = model.road_network_encoder()

    @torch.inference_mode()
    def choices(self, paths: Sequence[Path], destination: int) -> list[Choices]:
        """Where paths of the same length may go on."""
        model, navigator = self._model, self._model.navigator
        state = model.trajectory_encoder(*self._steps(paths))[:, -1]
        options = [
            candidates_of(
                self._network, path.roads[-1], self._first_successor(path.roads[-1]), destination, self._top_k
            )
            for path in paths
            if self._has_successors(path.roads[-1])
        ]
        found = []
        goal = self._zones[model.road2zone[destination]]
        following = iter(options)
        for row, path in enumerate(paths):
            if not self._has_successors(path.roads[-1]):
                found.append(Choices([], [], []))
                continue
            option = next(following)
            candidate = self._roads[torch.tensor(option.road)]
            query = navigator.q_proj(torch.cat([state[row], goal]))
            distance = navigator.metric_distance_proj(self._tensor(option.distance)[:, None])
            angle = navigator.metric_angle_proj(self._tensor(option.angle)[:, None])
            key = navigator.k_proj(torch.cat([candidate, distance, angle], dim=1))
            logits = navigator.v_proj(torch.tanh(query + key))[:, 0]
            times = navigator.times(state[row].expand(len(candidate), -1), candidate).double()
            seconds = torch.expm1(times * self._scale.sigma + self._scale.mu).clamp(min=0).round()
            log_prob = logits.double().log_softmax(0).tolist()
            found.append(Choices(option.road, log_prob, [int(value) for value in seconds.tolist()]))
        return found

    def _steps(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor, Tensors]:
        road = torch.tensor([path.roads for path in paths])
        temporal = [times_of_day(path.times) for path in paths]
        matrices = [
            matrices_by_trip([self._network.line_centroid[road].tolist() for road in path.roads], time)
            for path, time in zip(paths, temporal, strict=True)
        ]
        distance, interval = (np.stack(parts) for parts in zip(*matrices, strict=True))
        steps = Tensors(
            length=torch.full((len(paths),), road.shape[1]),
            temporal=self._tensor(temporal),
            distance=torch.from_numpy(distance).to(self._dtype),
            interval=torch.from_numpy(interval).to(self._dtype),
        )
        return self._roads[road], self._zones[self._model.road2zone[road]], steps

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._dtype)

    def _has_successors(self, road: int) -> bool:
        return bool(self._network.successor_offsets[road] < self._network.successor_offsets[road + 1])

    def _first_successor(self, road: int) -> int:
        return int(self._network.successors[self._network.successor_offsets[road]])


@dataclasses.dataclass(frozen=True)
class Rules:
    """Of the search; names and meaning are those of `student-trainer generate`."""

    width: int = 4
    finish: str = "normalised"
    length_power: float = 1.0
    repeats: str = "best"
    max_steps: int = 300
    max_seconds: float = 14_400.0
    together: bool = True
    """Run the model over all beams of a depth at once."""


def beam_search(student: Student, rules: Rules, origin: int, destination: int, departure: int) -> Path | None:
    """The trip from `origin` to another road, or None if no beam arrives."""
    beams = [Path([origin], [departure], 0.0)]
    best_of_road = {origin: 0.0}
    finished: Path | None = None
    for _ in range(1, rules.max_steps + 1):
        children = []
        groups = [beams] if rules.together else [[beam] for beam in beams]
        found = [choices for group in groups for choices in student.choices(group, destination)]
        for beam, choices in zip(beams, found, strict=True):
            for road, log_prob, seconds in zip(choices.road, choices.log_prob, choices.seconds, strict=True):
                child = Path([*beam.roads, road], [*beam.times, beam.times[-1] + seconds], beam.log_prob + log_prob)
                children.append(child)
        beams = []
        arrived: list[Path] = []
        for child in sorted(children, key=lambda child: -child.log_prob):
            road = child.roads[-1]
            if len(beams) + len(arrived) == rules.width or not _beats(child, finished, rules):
                break
            if road == destination:
                arrived.append(child)
            elif rules.repeats == "any" or (
                child.log_prob > best_of_road.get(road, -math.inf)
                if rules.repeats == "best"
                else road not in child.roads[:-1]
            ):
                best_of_road[road] = child.log_prob
                beams.append(child)
        for child in arrived:
            if child.times[-1] - departure <= rules.max_seconds and _beats(child, finished, rules):
                finished = child
        beams = [beam for beam in beams if beam.times[-1] - departure <= rules.max_seconds]
        if not beams or (finished is not None and rules.finish == "first"):
            break
    return finished


def _beats(path: Path, finished: Path | None, rules: Rules) -> bool:
    return finished is None or _score(path, rules) > _score(finished, rules)


def _score(path: Path, rules: Rules) -> float:
    return path.log_prob / float((len(path.roads) - 1) ** rules.length_power)
