"""When a batch was made and computed, for those who want to know where a request's time went."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from teacher_server.scorer import Scores


class BatchTimes(NamedTuple):
    """Of one batch, seconds on the batcher's clock."""

    assembling: float
    assembled: float
    computing: float
    computed: float


@dataclasses.dataclass(frozen=True, eq=False)
class BatchScores:
    """What the model gave for a batch, and when.

    Attributes:
        scores: the answers.
        started: when the model's thread took it.
        times: of its parts.
    """

    scores: Scores
    started: float
    times: BatchTimes
