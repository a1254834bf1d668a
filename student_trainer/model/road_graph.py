"""The road graph, and the part of it that decides the embeddings of the roads that are read.

A GAT of L layers embeds a road from the roads at most L edges upstream of it. A batch reads a tenth of a city's
roads, so `RoadGraph.field` finds what each layer must compute for them, and no layer computes anything else: outputs
and gradients are those of the whole graph.

An accelerator embeds all roads in less time than a host takes to find a field: it has `RoadGraph.whole_on`, made once.

Shapes: N roads, E edges (self-loops included), M roads of a layer's input or output.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Hop:
    """One layer's share of the graph: the edges into M_out roads from M_in roads, sorted by target.

    Attributes:
        own: int64 [M_out], the index of each target among the inputs; None where the inputs are the targets.
        offsets: int64 [M_out + 1], edges of each target.
        source: int64 [E], index among the inputs.
        target: int64 [E], index among the targets.
        attr: float32 [E, 2].
        source_offsets: int64 [M_in + 1] and source_edges: int64 [E], the edges out of each input.
    """

    own: Tensor | None
    offsets: Tensor
    source: Tensor
    target: Tensor
    attr: Tensor
    source_offsets: Tensor
    source_edges: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Hop:
        """The same with other tensors."""
        names = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]
        return dataclasses.replace(self, **{name: function(getattr(self, name)) for name in names})


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """What the layers compute so that some roads get their embeddings.

    Attributes:
        hops: of the first layer to the last.
        inputs: int64 [M], the roads whose features the first layer reads, ascending; None for all.
        row: int64 [N], the row of each road's embedding among those that the last layer gives; out of range (their
            number) for a road without one, so that reading it is an error. None where it is the road's number.
    """

    hops: tuple[Hop, ...]
    inputs: Tensor | None
    row: Tensor | None

    def to(self, device: torch.device) -> Field:
        """The host's field on a device, which the host does not wait for."""
        source = self.pin() if device.type == "cuda" else self
        return source._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Field:
        """The same in page-locked memory, from where copies are asynchronous; itself where it is already."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Field:
        made: dict[int, Hop] = {}  # layers may share a hop
        for hop in self.hops:
            made.setdefault(id(hop), hop.map(function))
        ids = (None if tensor is None else function(tensor) for tensor in (self.inputs, self.row))
        return Field(tuple(made[id(hop)] for hop in self.hops), *ids)


def with_own_loops(edge_index: Tensor, attr: Tensor, num_roads: int) -> tuple[Tensor, Tensor]:
    """Edges int64 [2, E] and attributes [E, A] with one self-loop a road, behind them, in place of those they have.

    A self-loop's attribute is the mean of the attributes of the road's incoming edges, 0 if there are none.
    """
    other = edge_index[0] != edge_index[1]
    edge_index, attr = edge_index[:, other], attr[other]
    own, target = torch.arange(num_roads), edge_index[1]
    sums = attr.new_zeros(num_roads, attr.shape[1]).index_add_(0, target, attr)
    means = sums / torch.bincount(target, minlength=num_roads).clamp(min=1)[:, None]
    return torch.cat([edge_index, torch.stack([own, own])], dim=1), torch.cat([attr, means])


class RoadGraph:
    """The road graph with self-loops, sorted by target, in memory of the host.

    A self-loop's attribute is the mean of the attributes of the road's incoming edges, 0
    if there are none; self-loops that the graph brings along are replaced.
    """

    def __init__(self, edge_index: Tensor, attr: Tensor, num_roads: int, num_layers: int) -> None:
        """From int64 [2, E'] source and target, and float32 [E', 2]."""
        edge_index, attr = with_own_loops(edge_index.cpu(), attr.cpu(), num_roads)
        order = torch.argsort(edge_index[1], stable=True)
        self._source, self._attr = edge_index[0][order].numpy(), attr[order].numpy()
        self._degree = torch.bincount(edge_index[1], minlength=num_roads).numpy()
        self._offsets = ragged.offsets(self._degree)
        self._num_roads, self._num_layers = num_roads, num_layers
        self._whole_on: dict[torch.device, Field] = {}

    def field(self, roads: Int64) -> Field:
        """What is computed for `roads`, int64 in any order, repeated or not."""
        targets = self._distinct(roads)
        row = torch.from_numpy(self._indices(targets))
        hops = []
        for _ in range(self._num_layers):
            hop, targets = self._hop(targets)
            hops.append(hop)
        return Field(tuple(reversed(hops)), torch.from_numpy(targets), row)

    @functools.cached_property
    def whole(self) -> Field:
        """The field of all roads."""
        hop, _ = self._hop(np.arange(self._num_roads))
        hop = dataclasses.replace(hop, own=None)
        return Field((hop,) * self._num_layers, None, None)

    def whole_on(self, device: torch.device) -> Field:
        """The field of all roads on a device, copied there once."""
        if device not in self._whole_on:
            with torch.inference_mode(False):  # for training, too, whoever asks first
                self._whole_on[device] = self.whole.to(device)
        return self._whole_on[device]

    def _hop(self, targets: Int64) -> tuple[Hop, Int64]:
        """The edges into `targets` (ascending), and the roads that they come from (ascending, targets included)."""
        degree = self._degree[targets]
        edge = ragged.slices(self._offsets[targets], degree)
        source = self._source[edge]
        inputs = self._distinct(source)
        index = self._indices(inputs)
        source = index[source]
        arrays = {
            "own": index[targets],
            "offsets": ragged.offsets(degree),
            "source": source,
            "target": ragged.rows(degree),
            "attr": self._attr[edge],
            "source_offsets": ragged.offsets(np.bincount(source, minlength=len(inputs))),
            "source_edges": np.argsort(source, kind="stable"),
        }
        return Hop(**{name: torch.from_numpy(array) for name, array in arrays.items()}), inputs

    def _distinct(self, roads: Int64) -> Int64:
        """Ascending; what `np.unique` gives, without sorting."""
        is_there = np.zeros(self._num_roads, bool)
        is_there[roads] = True
        return np.flatnonzero(is_there)

    def _indices(self, roads: Int64) -> Int64:
        """Index of each road among `roads`, int64 [N]; their number where it is not among them."""
        indices = np.full(self._num_roads, len(roads), np.int64)
        indices[roads] = np.arange(len(roads))
        return indices
