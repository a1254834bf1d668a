"""The head of the model for a few tokens of each state: products, and the full vocabulary's normaliser if wanted.

Shapes: U states, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from teacher_server.engine import calibrate
from teacher_server.engine.shapes import OVERHEAD, Choice
from teacher_server.engine.threads import Threads
from teacher_server.scorer import Int64

Float32 = npt.NDArray[np.float32]

NORMALISER_VALUES = 1 << 22
"""Logits of the largest chunk of the full-vocabulary normaliser."""


class Head:
    """The weight of `lm_head`, applied in chunks of lengths that give the same bits.

    Attributes:
        chunks: lengths for logits.
        normaliser_chunks: lengths for normalisers.
    """

    def __init__(self, weight: Tensor, tile_tokens: int, threads: Threads) -> None:
        """Finds the lengths.

        Args:
            weight: [V, D].
            tile_tokens: longest chunk of logits.
            threads: chunks at once.
        """
        self._weight = weight
        self._threads = threads
        self.chunks = Choice(
            calibrate.chunk_sizes(tile_tokens, weight, self._logits, with_tokens=True), OVERHEAD * tile_tokens
        )
        rows = max(1, NORMALISER_VALUES // len(weight))
        self.normaliser_chunks = Choice(
            calibrate.chunk_sizes(rows, weight, self._log_sums, with_tokens=False), OVERHEAD * rows
        )

    def logits(self, states: Tensor, pairs: Int64) -> Float32:
        """Logit of each pair of state and token, products and sums in float32: int64 [n, 2] -> [n]."""
        return self._in_chunks(self._logits, self.chunks, states, pairs)

    def log_normalisers(self, states: Tensor, which: Int64) -> Float32:
        """Log of the full vocabulary's sum of exponentials, of some states: int64 [n] -> [n]."""
        return self._in_chunks(self._log_sums, self.normaliser_chunks, states, which)

    def _logits(self, states: Tensor, pairs: Tensor) -> Tensor:
        return (states[pairs[:, 0]] * self._weight[pairs[:, 1]].float()).sum(-1)

    def _log_sums(self, states: Tensor, which: Tensor) -> Tensor:
        return torch.logsumexp(states[which] @ self._weight.float().T, -1)

    def _in_chunks(
        self, function: Callable[[Tensor, Tensor], Tensor], chunks: Choice, states: Tensor, inputs: Int64
    ) -> Float32:
        """A function of states and inputs int64 [n, ...] -> [n], in chunks of fixed lengths."""
        lengths = np.array(chunks.cover(len(inputs)), np.int64)
        padded = np.zeros((int(lengths.sum()), *inputs.shape[1:]), np.int64)
        padded[: len(inputs)] = inputs
        on_device = torch.from_numpy(padded).to(self._weight.device)
        found = torch.empty(len(padded), device=self._weight.device)

        def run(chunk: slice) -> None:
            found[chunk] = function(states, on_device[chunk])

        ends = ragged.offsets(lengths).tolist()
        self._threads.each(run, [slice(*ends_of) for ends_of in itertools.pairwise(ends)])
        return _read(found[: len(inputs)])


def _read(found: Tensor) -> Float32:
    """What a device has computed; the only place where scoring waits for it, once for logits and once for masses."""
    return cast(Float32, found.cpu().numpy())
