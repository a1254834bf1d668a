"""What a search finds for an OD pair."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from shared.arrays import Int64

Status = Literal["arrived", "dead_end", "unreachable", "step_limit", "time_limit"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The trip of an OD pair.

    Attributes:
        pair: which one.
        status: arrived; dead_end: no path could go on; unreachable: there is no way; step_limit, time_limit: at least
            one path was cut off there, the last of them there.
        roads: int64 [n], the origin first. If it has not arrived: the path of the search that ended nearest to the
            destination, centroid to centroid; of an unreachable one the origin alone.
        times: int64 [n] entry time of each road, seconds.
        log_prob: sum over the steps of the logarithm of the chosen candidate's probability; None without a model's
            choice.
        expanded: steps whose candidates were scored.
    """

    pair: int
    status: Status
    roads: Int64
    times: Int64
    log_prob: float | None
    expanded: int
