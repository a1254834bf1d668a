"""The head of the model for a few tokens of each state: products, and the full vocabulary's normaliser if wanted.

Shapes: U states, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Float32, Int64
from teacher_server.engine import calibrate
from teacher_server.engine.fused import Fused, dots_by_gathering
from teacher_server.engine.shapes import OVERHEAD, Choice
from teacher_server.engine.threads import Threads

NORMALISER_VALUES = 1 << 22
"""Logits of the largest chunk of the full-vocabulary normaliser on a CPU."""
ACCELERATOR_NORMALISER_VALUES = 1 << 28
"""The same on an accelerator with memory for it: float32, 1 GiB."""
NORMALISER_SHARE = 1 / 32
"""Of an accelerator's memory that such a chunk may take."""


class Head:
    """The weight of `lm_head`, applied in chunks of lengths that give the same bits.

    Attributes:
        chunks: lengths for logits.
        normaliser_chunks: lengths for normalisers.
        dependent: what has other bits in other places of a chunk.
    """

    def __init__(self, weight: Tensor, tile_tokens: int, threads: Threads, fused: Fused) -> None:
        """Finds the lengths.

        Args:
            weight: [V, D].
            tile_tokens: longest chunk of logits.
            threads: chunks at once.
            fused: kernels to use.
        """
        self._weight = weight
        self._threads = threads
        self._fused = fused
        self._wide: Tensor | None = None
        self.dependent: list[str] = []
        lengths = calibrate.chunk_sizes(tile_tokens, weight, self._logits, True, self.dependent)
        self.chunks = Choice(lengths, OVERHEAD * tile_tokens)
        rows = max(1, _normaliser_values(weight.device) // len(weight))
        lengths = calibrate.chunk_sizes(rows, weight, self._log_sums, False, self.dependent)
        self.normaliser_chunks = Choice(lengths, OVERHEAD * rows)

    def logits(self, states: Tensor, pairs: Int64) -> Float32:
        """Logit of each pair of state and token, products and sums in float32: int64 [n, 2] -> [n]."""
        return self._in_chunks(self.fill_logits, self.chunks, states, pairs)

    def log_normalisers(self, states: Tensor, which: Int64) -> Float32:
        """Log of the full vocabulary's sum of exponentials, of some states: int64 [n] -> [n]."""
        return self._in_chunks(self.fill_log_normalisers, self.normaliser_chunks, states, which)

    def fill_logits(self, states: Tensor, pairs: Tensor, lengths: Sequence[int], out: Tensor) -> None:
        """`logits` on the device: int [n, 2] in chunks of these lengths, all of n -> float32 [n]."""
        self._fill(self._logits, states, pairs, lengths, out)

    def fill_log_normalisers(self, states: Tensor, which: Tensor, lengths: Sequence[int], out: Tensor) -> None:
        """`log_normalisers` on the device: int [n] in chunks of these lengths, all of n -> float32 [n]."""
        self._fill(self._log_sums, states, which, lengths, out)

    def _logits(self, states: Tensor, pairs: Tensor) -> Tensor:
        return (self._fused.dots or dots_by_gathering)(states, self._weight, pairs)

    def _log_sums(self, states: Tensor, which: Tensor) -> Tensor:
        if self._fused.product is not None:
            logits = self._fused.product(states[which].to(self._weight.dtype), self._weight.T)
        else:
            logits = states[which].float() @ self._wide_weight().T
        return self._fused.log_sums(logits) if self._fused.log_sums is not None else torch.logsumexp(logits, -1)

    def _wide_weight(self) -> Tensor:
        """The weight in float32; an accelerator keeps it."""
        if self._wide is not None:
            return self._wide
        wide = self._weight.float()
        if wide.device.type != "cpu":
            self._wide = wide
        return wide

    def _fill(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        states: Tensor,
        inputs: Tensor,
        lengths: Sequence[int],
        out: Tensor,
    ) -> None:
        def run(chunk: slice) -> None:
            out[chunk] = function(states, inputs[chunk])

        ends = ragged.offsets(np.array(lengths, np.int64)).tolist()
        self._threads.each(run, [slice(*ends_of) for ends_of in itertools.pairwise(ends)])

    def _in_chunks(
        self, fill: Callable[[Tensor, Tensor, Sequence[int], Tensor], None], chunks: Choice, states: Tensor,
        inputs: Int64,
    ) -> Float32:  # fmt: skip
        """A function of states and inputs int64 [n, ...] -> [n], in chunks of fixed lengths."""
        lengths = chunks.cover(len(inputs))
        padded = np.zeros((sum(lengths), *inputs.shape[1:]), np.int64)
        padded[: len(inputs)] = inputs
        found = torch.empty(len(padded))
        fill(states, torch.from_numpy(padded), lengths, found)
        return cast(Float32, found[: len(inputs)].numpy())


def _normaliser_values(device: torch.device) -> int:
    """Logits of the largest chunk of the normaliser on a device."""
    if device.type != "cuda":
        return NORMALISER_VALUES
    room = NORMALISER_SHARE * torch.cuda.get_device_properties(device).total_memory / torch.float32.itemsize
    return min(ACCELERATOR_NORMALISER_VALUES, int(room))
