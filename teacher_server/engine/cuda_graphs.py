"""Tiles on an accelerator: each fixed shape is computed from the same memory to the same memory, as one recorded graph.

    a tile's numbers --copy--> inputs of all shapes --graph of this shape--> states of all shapes --copy--> of the batch

A shape is recorded when it is first computed, or before. It is computed operation by operation first; if the graph then
gives other bits, or cannot be recorded, that shape stays with the operations.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from teacher_server.engine.forward import states_of
from teacher_server.engine.shapes import Group, Kind
from teacher_server.engine.streams import Replay, Streams
from teacher_server.lmtad.model import LMTAD

log = logging.getLogger(__name__)

TIMES = 5
"""Calls that are timed."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A fixed shape.

    Attributes:
        group: of its tiles.
        size: of its tiles.
    """

    group: Group
    size: int

    @property
    def inputs(self) -> int:
        """Numbers of a tile's inputs."""
        return self.size * self.group.columns

    @property
    def states(self) -> int:
        """States that it computes, with padding; it has so many places, too."""
        return self.group.most_states(self.size)

    @property
    def numbers(self) -> int:
        """Numbers of inputs and places."""
        return self.inputs + self.states


class Graphs:
    """Computes tiles; one thread at a time, within `Streams.computing`.

    Attributes:
        is_on: whether shapes are recorded.
    """

    def __init__(
        self, network: LMTAD, sizes: Mapping[Group, tuple[int, ...]], streams: Streams, is_on: bool = True
    ) -> None:
        """Makes the memory of all shapes; records none yet.

        Args:
            network: the model on its device.
            sizes: of tile that are used, by group.
            streams: of the device.
            is_on: whether to record at all.
        """
        weight = network.lm_head.weight
        self.is_on = is_on
        self._network = network
        self._streams = streams
        self._shapes = [Shape(group, size) for group, found in sizes.items() for size in found]
        self._given = torch.zeros(max(shape.numbers for shape in self._shapes), dtype=torch.int32, device=weight.device)
        self._states = weight.new_zeros(max(shape.states for shape in self._shapes), weight.shape[1])
        self._ways: dict[Shape, Replay] = {}
        self._recorded = 0

    @property
    def recorded(self) -> int:
        """Shapes that are computed as graphs."""
        return self._recorded

    def states(self, shape: Shape, numbers: Tensor) -> Tensor:
        """The states of a tile.

        Args:
            shape: of the tile.
            numbers: int32 [shape.numbers], its inputs, and the places padded.

        Returns:
            [shape.states, D]; they hold until the next call.
        """
        self._given[: shape.numbers].copy_(numbers)
        way = self._ways.get(shape)
        if way is None:  # computes it, too
            self._ways[shape] = self._prepare(shape)
        else:
            way()
        return self._states[: shape.states]

    @torch.inference_mode()
    def choose(self) -> None:
        """Records the smallest shape and times it: if its graph is not faster than its operations, none is used."""
        smallest = min(self._shapes, key=lambda shape: shape.size * shape.group.unit)
        self._make(smallest)
        if not self._recorded:
            self.is_on = False
            return
        graph = self._streams.milliseconds(self._ways[smallest], TIMES)
        operations = self._streams.milliseconds(lambda: self.compute(smallest), TIMES)
        self.is_on = graph <= operations
        log.info("graphs: %s, %.3f ms against %.3f", "used" if self.is_on else "not used", graph, operations)
        if not self.is_on:
            self._ways.clear()
            self._recorded = 0

    @torch.inference_mode()
    def prepare(self, seconds: float) -> None:
        """Records the shapes of short contexts, the largest first, and then the others, within a time."""
        ends = time.monotonic() + seconds
        for shape in sorted(
            self._shapes, key=lambda shape: (shape.group.kind is not Kind.TREE, -shape.size * shape.group.unit)
        ):
            if time.monotonic() > ends:
                log.info("graphs: the other shapes are recorded when they are first needed")
                break
            if shape not in self._ways:
                self._make(shape)
        log.info("graphs: %d of %d shapes are recorded", self._recorded, len(self._shapes))

    def _make(self, shape: Shape) -> None:
        self._given[: shape.numbers].zero_()
        self._ways[shape] = self._prepare(shape)

    def compute(self, shape: Shape) -> None:
        """The states of a shape, operation by operation."""
        inputs = self._given[: shape.inputs].view(shape.size, shape.group.columns)
        index = self._given[shape.inputs : shape.numbers]
        self._states[: shape.states].copy_(states_of(shape.group, self._network, inputs, index))

    def _prepare(self, shape: Shape) -> Replay:
        """How to compute a shape from now on; what it is given is computed."""

        def compute() -> None:
            self.compute(shape)

        compute()
        if not self.is_on:
            return compute
        expected = self._states[: shape.states].clone()
        name = f"{shape.group.kind.value} of {shape.group.width} tokens, size {shape.size}"
        try:
            replay = self._streams.record(compute)
            self._states[: shape.states].zero_()
            replay()
        except RuntimeError as error:
            log.warning("%s: cannot be recorded as a graph (%s)", name, str(error).partition("\n")[0])
            compute()
            return compute
        if not torch.equal(self._states[: shape.states], expected):
            log.warning("%s: its graph gives other bits and is not used", name)
            self._states[: shape.states].copy_(expected)
            return compute
        self._recorded += 1
        return replay
