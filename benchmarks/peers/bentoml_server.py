"""BentoML: arrays travel as JSON lists; its batcher counts rows and chooses its own wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bentoml
import numpy as np

from benchmarks.peers import rows


def _endpoint(size: int) -> Callable[..., Any]:
    """An endpoint for requests of `size` rows, so that a batch holds `MAX_REQUESTS` of them."""

    def score(self: Any, rows: np.ndarray) -> np.ndarray:
        answer: np.ndarray = self.model.score(np.asarray(rows, np.int32))
        return answer

    score.__name__ = f"score_{size}"
    batch = size * rows.MAX_REQUESTS
    decorated: Callable[..., Any] = bentoml.api(batchable=True, max_batch_size=batch, max_latency_ms=120_000)(score)
    return decorated


class Teacher:
    """One worker process with the model."""

    def __init__(self) -> None:
        self.model = rows.Model()


for _size in rows.sizes():
    setattr(Teacher, f"score_{_size}", _endpoint(_size))

Service = bentoml.service(workers=1, threads=1, traffic={"timeout": 120})(Teacher)
