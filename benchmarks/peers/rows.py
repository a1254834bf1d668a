"""A request of the peers: one int32 array of rows, and the obvious way to score it.

A row is [length, window cells, candidates], padded on the right: windows with 0, candidates with -1. The answer is
float16 [n, C]: log-probabilities renormalised over the row's candidates, 0 where there is none.

Shapes: n rows, W window, C most candidates of a row, T = W + 1 with SOT, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]
Float16 = npt.NDArray[np.float16]

WINDOW = 4
TEACHER, WIDTH, PORT, SIZES = "PEER_TEACHER", "PEER_WIDTH", "PEER_PORT", "PEER_SIZES"
"""Environment of a server: its teacher file, ints of a row, its port, and the rows of a request, comma-separated."""
MAX_REQUESTS = 32
"""Requests that a peer may merge; where it counts rows, the rows of so many."""
WAIT_SECONDS = 0.002
"""That it may wait for them."""
AT_ONCE = 512
"""Rows whose logits are in memory at once: 512 x 20,000 float32 are 40 MB; 64,000 would be 5 GB."""


def width(candidates: int) -> int:
    """Ints of a row with room for so many candidates."""
    return 1 + WINDOW + candidates


def from_bytes(content: bytes) -> Rows:
    """Rows as they travel: int32, little-endian."""
    return np.frombuffer(content, "<i4").reshape(-1, int(os.environ[WIDTH]))


def port() -> int:
    """Where this server is to listen."""
    return int(os.environ[PORT])


def sizes() -> list[int]:
    """Rows that requests will have."""
    return [int(size) for size in os.environ[SIZES].split(",")]


class Model:
    """The teacher as anyone would write it: merged, padded, the head at the last position, softmax, gather."""

    def __init__(self, path: Path | None = None) -> None:
        """Loads the teacher file of the environment, or this one; one thread of torch."""
        import torch  # clients do without

        from shared import teacher_file
        from teacher_server.lmtad import model

        torch.set_num_threads(1)
        header, weights = teacher_file.read(path or Path(os.environ[TEACHER]))
        self._torch, self._model = torch, model.load(header, weights)
        self._sot = header.tokeniser.vocabulary.sot

    def score_batch(self, requests: Sequence[Rows]) -> list[Float16]:
        """The answers to several requests, computed together."""
        merged = self.score(np.concatenate(requests))
        ends = np.cumsum([len(rows) for rows in requests])[:-1]
        return list(np.split(merged, ends))

    def score(self, rows: Rows) -> Float16:
        """int32 [n, 1 + W + C] -> float16 [n, C]."""
        return np.concatenate([self._score(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)])

    def _score(self, rows: Rows) -> Float16:
        torch = self._torch
        with torch.inference_mode():
            table = torch.from_numpy(np.array(rows, np.int64))
            length, windows, candidates = table[:, 0], table[:, 1 : 1 + WINDOW], table[:, 1 + WINDOW :]
            tokens = torch.cat([torch.full((len(rows), 1), self._sot), windows], dim=1)  # [n, T]
            hidden = self._model.hidden(tokens)[torch.arange(len(rows)), length]  # causal: right padding is not seen
            probabilities = self._model.lm_head(hidden).softmax(-1)  # [n, V]
            exists = candidates >= 0
            chosen = probabilities.gather(1, candidates.clamp(min=0)) * exists
            log_probs = (chosen / chosen.sum(-1, keepdim=True)).log().masked_fill(~exists, 0.0)
            answer: Float16 = log_probs.half().numpy()
            return answer
