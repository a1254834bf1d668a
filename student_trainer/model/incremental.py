"""HOSER, one step at a time, of many paths at once: its `Decoder`.

A path is a list of steps; steps lie in a table with what later steps read of them: keys and values of every block,
and what the time estimator makes of the state. Paths that branch share the steps before, so nothing is copied when
they do, and no step is computed twice. The network is embedded once, and what a road brings to a path's input, to a
candidate's logit and to its time is computed once a road.

A step's numbers do not depend, not by a bit, on the steps that are computed with it. All matrix products are of tiles
of a few fixed numbers of rows, each row of which is summed by itself; of these sizes only those are used that give a
row the same bits as the largest one wherever in the tile it lies. That is tried out at the start with the model's own
layers: the order of summation does not depend on the data. Attention is computed path by path. For all this torch must
have one thread in the threads that use a student; `workers` has.

The model computes where its weights are, by the same operations; `path_attention` says what differs. On an accelerator
what later steps read stays there, and tiles are larger. The host finds paths, features and candidates, sends what a
tile needs as one array, and reads once a step: logits and travel times of all candidates, of which it keeps the times,
for a search asks for some of them later.

Shapes: R paths, W most steps of a path, M steps in the table, D = 2d width, N roads, K candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Bool, Float32, Float64, Int32, Int64
from shared.errors import DataError
from student_trainer.data import kernels as feature_kernels
from student_trainer.data.batch import Candidates, candidates_of, minutes_of_day, time_of_day
from student_trainer.data.network import RoadNetwork
from student_trainer.data.packing import together
from student_trainer.model import device as devices
from student_trainer.model import step_kernels
from student_trainer.model.device import one_thread
from student_trainer.model.hoser import HOSER
from student_trainer.model.hoser_steps import HoserSteps
from student_trainer.model.path_attention import Paths, Relative, attend
from student_trainer.model.road_tables import RoadTables
from student_trainer.model.time_scale import TimeScale

T = TypeVar("T")

PAIRS = 65_536
"""Pairs of candidates that are compared at once."""

TILE = 256
"""Rows of the largest tile; on an accelerator, which one tile should keep busy, `FAR` times as many."""
UNIT = 16
"""Tiles are of multiples of so many rows; on an accelerator of `FAR` times as many."""
FAR = 8


class IncrementalStudent:
    """A student that goes on from what it knows of a path.

    Attributes:
        network: the road network.
        device: where the model computes.
        forward_calls, forward_rows: passes through the trip encoder so far, and steps computed in them.
        tiles: sizes of tile, ascending.
    """

    def __init__(self, model: HOSER, network: RoadNetwork, scale: TimeScale, top_k: int) -> None:
        """Embeds the network.

        Args:
            model: on the device where it is to compute.
            network: the store's.
            scale: how travel times were standardised.
            top_k: candidates per position, as for `build_batch`.
        """
        self.network = network
        self.forward_calls = self.forward_rows = 0
        self._model, self._scale, self._top_k = model, scale, top_k
        self.device = model.road2zone.device
        self._blocks = model.trajectory_encoder.blocks
        self._relative = [Relative.of(block.attn) for block in self._blocks]
        self._lock = threading.Lock()
        most = int(np.diff(network.successor_offsets).max())
        self._times_kept = 0 if self.device.type == "cpu" else min(most, top_k or most)
        self._largest, self._unit = (size * (1 if self.device.type == "cpu" else FAR) for size in (TILE, UNIT))
        with one_thread(), devices.float32_products(self.device, tf32=False):
            self._roads = RoadTables.of(model)
            self.tiles = self._exact_tiles()

    @torch.inference_mode()
    def _exact_tiles(self) -> tuple[int, ...]:
        """Sizes of tile, ascending, that give each row the bits that it has in the largest one."""
        random = torch.Generator().manual_seed(0)
        largest, width = self._largest, self._roads.spatial.shape[1]
        x, z = (torch.randn(largest, n * width, generator=random).to(self.device) for n in (2, 1))
        expected = self._products(x, z)
        sizes = []
        for size in range(self._unit, largest + 1, self._unit):
            rows = torch.randperm(largest, generator=random)[:size].to(self.device)
            found = self._products(x[rows], z[rows])
            if all(torch.equal(ours, theirs[rows]) for ours, theirs in zip(found, expected, strict=True)):
                sizes.append(size)
        return (*(size for size in sizes if size < largest), largest)

    def _products(self, x: Tensor, z: Tensor) -> list[Tensor]:
        """Everything whose bits could depend on the number of rows, of random states [R, D] and keys [R, d]."""
        navigator = self._model.navigator
        products = [navigator.queries(x, z), navigator.logits(z, z, z[:, 0], z[:, 1])]
        time_part = navigator.time_estimator_linear_1(x)
        products += [time_part, navigator.times_of(time_part, time_part)]
        products.append(self._model.trajectory_encoder.temporal_encoder(z[:, 0].contiguous()))
        for block in self._blocks:
            products += [block.attn.c_attn(block.ln_1(x)), block.attn.c_proj(x), block.mlp(block.ln_2(x))]
        return products

    def table(self) -> HoserSteps:
        """An empty table of steps."""
        config, time_width = self._model.config, self._roads.time.shape[1]
        sizes = (config.num_layers, 2 * config.road_dim, time_width)
        return HoserSteps(*sizes, device=self.device, candidates=self._times_kept)

    def advance(
        self, table: HoserSteps, place: Int64, length: Int64, weekend: Bool, destination: Int64
    ) -> tuple[Candidates, Float64]:
        """See `Decoder`."""
        rows = len(length)
        with self._lock:
            self.forward_calls += 1
            self.forward_rows += rows
        path, road = table.paths(place, length), table.road[place]
        temporal = time_of_day(table.time[place], weekend)
        table.minutes[place] = minutes_of_day(temporal)
        query = torch.cat(
            self._in_parts(
                lambda part, size: self._queries(
                    table, path[part], length[part], temporal[part], destination[part], size
                ),
                rows,
            )
        )
        no_label = np.full(rows, -1, np.int32)
        candidates = candidates_of(self.network, road, no_label, destination, self._top_k)
        logit, times = self._answers(table, place, query, candidates)
        if self._times_kept:
            most = self._times_kept
            table.candidate[place] = ragged.pad(candidates.road.astype(np.int32), candidates.length, most, -1)
            table.standardised[place] = ragged.pad(times, candidates.length, most, 0)
        if not np.isfinite(logit).all():
            raise DataError("the weights give logits that are not finite: they are damaged, or training diverged")
        log_prob = np.empty(len(logit))
        step_kernels.log_softmax(log_prob, logit, candidates.length)
        return candidates, log_prob

    def seconds(self, table: HoserSteps, place: Int64, road: Int64) -> Int64:
        """Travel times from computed steps [R] to the entry of roads [R]: whole seconds, not negative, int64 [R].

        Rounded to the nearest second (halves to even), as upstream does; the steps that follow read the rounded time,
        and training too has read whole seconds.
        """
        standardised = np.empty(len(place), np.float32)
        rest = np.arange(len(place))
        if self._times_kept:  # of a road that `top_k` has cut off none is
            is_road = table.candidate[place] == road[:, None]
            standardised = table.standardised[place, is_road.argmax(1)]
            rest = np.flatnonzero(~is_road.any(1))
        if len(rest):
            parts = self._in_parts(
                lambda part, size: self._times(table, place[rest[part]], road[rest[part]], size), len(rest)
            )
            standardised[rest] = devices.fetch(torch.cat(parts))
        log1p = np.minimum(standardised.astype(np.float64) * self._scale.sigma + self._scale.mu, MOST_LOG_SECONDS)
        return np.asarray(np.rint(np.expm1(log1p).clip(min=0)), np.int64)

    @torch.inference_mode()
    def least_costs(self, destination: int) -> tuple[Candidates, Float64]:
        """For every road, its candidates and a lower bound of -log p of each, whatever path leads to the road: [K].

        p is largest where the others' logits are lowest beside its own. A logit is v . tanh(q + k), of which only q
        depends on the path, and tanh(q + a) - tanh(q + b) <= 2 tanh(|a - b| / 2) for all q. So no other candidate's
        logit is lower than a candidate's own by more than D = sum |v| 2 tanh(|k - k'| / 2), and -log p is at least
        log(1 + sum of e^-D over the others).
        """
        roads = np.arange(self.network.num_roads)
        no_label = np.full(len(roads), -1, np.int32)
        candidates = candidates_of(self.network, roads, no_label, np.full(len(roads), destination), self._top_k)
        navigator = self._model.navigator
        road, *metrics = together((candidates.road, candidates.distance, candidates.angle), self.device)
        key = navigator.keys(self._roads.key[road], *metrics)
        weight = 2 * navigator.v_proj.weight.abs().squeeze(0)
        others = np.repeat(candidates.length, candidates.length)
        first = np.repeat(ragged.offsets(candidates.length)[:-1], candidates.length)
        one, other = ragged.rows(others), ragged.slices(first, others)
        likeness = [key.new_empty(0)]
        for start in range(0, len(one), PAIRS):
            part = slice(start, start + PAIRS)
            left, right = together((one[part], other[part]), self.device)
            likeness.append(torch.exp(-torch.tanh((key[left] - key[right]).abs() / 2) @ weight))
        weights = devices.fetch(torch.cat(likeness)).astype(np.float64)
        return candidates, np.log(np.bincount(one, weights=weights, minlength=len(others)))

    def _in_parts(self, function: Callable[[slice, int], T], count: int) -> list[T]:
        """What a function gives for each tile: which of so many rows it holds, and its size."""
        tile = self._largest
        parts = [slice(first, min(first + tile, count)) for first in range(0, count, tile)]
        sizes = [next(size for size in self.tiles if size >= part.stop - part.start) for part in parts]
        return [function(part, size) for part, size in zip(parts, sizes, strict=True)]

    def _filled(self, size: int, *arrays: npt.NDArray) -> list[Tensor]:
        """The rows of a tile and what fills it up, on the device."""
        return together([_filled(array, size) for array in arrays], self.device)

    @torch.inference_mode()
    def _times(self, table: HoserSteps, place: Int64, road: Int64, size: int) -> Tensor:
        """Standardised times from steps to roads, [R]."""
        of, to = self._filled(size, place, road)
        return self._model.navigator.times_of(table.time_part[of], self._roads.time[to])[: len(road)]

    @torch.inference_mode()
    def _queries(
        self, table: HoserSteps, path: Int32, length: Int64, temporal: Float32, destination: Int64, size: int
    ) -> Tensor:
        """What the paths of a tile bring to their candidates' logits, [R, d]; their last steps go into the table."""
        rows, longest = path.shape
        place = path[np.arange(rows), length - 1]
        distance, interval = np.zeros((2, rows, longest), np.float32)
        point = self.network.centroid_on_sphere
        feature_kernels.fill_last_pairs(distance, interval, path, length, table.road, table.minutes, point)
        of_steps = (_filled(array, size) for array in (table.road[place], temporal, destination))
        road, time, goal, *of_paths = together((*of_steps, path, length, place, distance, interval), self.device)
        paths = Paths(*of_paths)
        encoder, navigator = self._model.trajectory_encoder, self._model.navigator
        x = torch.cat([self._roads.spatial[road], encoder.temporal_encoder(time)], dim=-1)
        for layer, block in enumerate(self._blocks):
            qkv = block.attn.c_attn(block.ln_1(x))
            attended = attend(qkv, table.keys[layer], table.values[layer], paths, self._relative[layer])
            x = x + block.attn.c_proj(attended)
            x = x + block.mlp(block.ln_2(x))
        table.time_part[paths.last] = navigator.time_estimator_linear_1(x)[:rows]
        return navigator.queries(x, self._roads.zone[goal])[:rows]

    def _answers(
        self, table: HoserSteps, place: Int64, query: Tensor, candidates: Candidates
    ) -> tuple[Float32, Float32]:
        """Logits of the candidates of the steps at places [R], and their standardised times where these are kept."""
        row = np.repeat(np.arange(len(place)), candidates.length)
        arrays = (row, place[row], candidates.road, candidates.distance, candidates.angle)

        @torch.inference_mode()
        def answers(part: slice, size: int) -> Tensor:
            of, at, road, distance, angle = self._filled(size, *(array[part] for array in arrays))
            navigator = self._model.navigator
            found = [navigator.logits(query[of], self._roads.key[road], distance, angle)]
            if self._times_kept:
                found.append(navigator.times_of(table.time_part[at], self._roads.time[road]))
            return torch.stack(found)[:, : part.stop - part.start]

        parts = self._in_parts(answers, len(row))
        if not parts:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        found = devices.fetch(torch.cat(parts, dim=1))
        return found[0], found[-1]


MOST_LOG_SECONDS = 20.0
"""Some 15 years: what keeps an untrained model's times within the range of whole numbers."""


def _filled(values: npt.NDArray, size: int) -> npt.NDArray:
    """The values and zeros up to the tile's size."""
    if len(values) == size:
        return np.ascontiguousarray(values)
    filled = np.zeros((size, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    return filled
