"""A batch on an accelerator: one copy there, tiles as graphs, logits and normalisers, one copy back.

    Tiling, candidates --pack (any thread)--> Packed --compute (model thread)--> logits, normalisers

Nothing between the two copies waits for the device.

Shapes: U distinct states, K candidates, W states whose normaliser is wanted, D width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from shared.arrays import Float32, Int64
from teacher_server.engine.cuda_graphs import Graphs, Shape
from teacher_server.engine.head import Head
from teacher_server.engine.layouts import Tile
from teacher_server.engine.streams import Streams
from teacher_server.engine.tiler import Tiling
from teacher_server.engine.transfer import Parcel, Part, Receiver, Sender
from teacher_server.lmtad.model import LMTAD


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A batch on its way to the device.

    Attributes:
        parcel: a part for each tile, one for the candidates, one for the states whose normaliser is wanted.
        tiles: in the order of their parts.
        states: U.
        logits: lengths of the chunks of candidates.
        candidates: K.
        normalisers: lengths of the chunks of normalisers.
        wanted: W.
    """

    parcel: Parcel
    tiles: list[Tile]
    states: int
    logits: list[int]
    candidates: int
    normalisers: list[int]
    wanted: int


class Accelerated:
    """Computes packed batches."""

    def __init__(self, network: LMTAD, head: Head, graphs: Graphs, streams: Streams) -> None:
        """On the network's device.

        Args:
            network: the model.
            head: its head.
            graphs: of its tiles.
            streams: of the device.
        """
        self._weight = network.lm_head.weight
        self._head = head
        self._graphs = graphs
        self._streams = streams
        self._sender = Sender(streams)
        self._receiver = Receiver(streams)

    def pack(self, tiling: Tiling, pairs: Int64, wanted: Int64) -> Packed:
        """Starts to send a batch; any thread.

        Args:
            tiling: its tiles.
            pairs: int64 [K, 2], state and token of each candidate.
            wanted: int64 [W], states whose normaliser is wanted.
        """
        logits, normalisers = self._head.chunks.cover(len(pairs)), self._head.normaliser_chunks.cover(len(wanted))
        parts = [Part([tile.inputs, tile.index], _shape(tile).numbers) for tile in tiling.tiles]
        parts += [Part([pairs], 2 * sum(logits)), Part([wanted], sum(normalisers))]
        parcel = self._sender.send(parts)
        return Packed(parcel, tiling.tiles, tiling.states, logits, len(pairs), normalisers, len(wanted))

    @torch.inference_mode()
    def compute(self, packed: Packed) -> tuple[Float32, Float32]:
        """Logits float32 [K] and normalisers float32 [W] of a batch; one thread at a time."""
        pairs, wanted = packed.parcel.parts[-2:]
        count = sum(packed.logits)
        with self._streams.computing():
            states = self.states(packed)
            results = self._receiver.space(count + sum(packed.normalisers))
            self._head.fill_logits(states, pairs.view(count, 2), packed.logits, results[:count])
            self._head.fill_log_normalisers(states, wanted, packed.normalisers, results[count:])
            found = self._receiver.receive(len(results))
        self._sender.take_back(packed.parcel)
        return found[: packed.candidates], found[count : count + packed.wanted]

    def states(self, packed: Packed) -> Tensor:
        """Final hidden states of a batch's distinct scored places, [U, D], within `Streams.computing`."""
        self._streams.arrived(packed.parcel.upload)
        states = self._weight.new_empty(packed.states, self._weight.shape[1])
        for tile, numbers in zip(packed.tiles, packed.parcel.parts[:-2], strict=True):
            found = self._graphs.states(_shape(tile), numbers)
            states[tile.first : tile.first + tile.count].copy_(found[: tile.count])
        return states


def _shape(tile: Tile) -> Shape:
    return Shape(tile.group, tile.size)
