"""The next road of a trip under way, from what a student says of its candidates. C candidates of a trip."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared.arrays import Float32, Float64, Int64
from shared.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class NextRoad:
    """What may follow a trip: C candidates, the successors of its last road in the network's order.

    Attributes:
        roads: int64 [C]; empty at a dead end.
        probabilities: float64 [C], of which each road is the next; their sum is 1.
        seconds: float32 [C], predicted travel time from the entry of the trip's last road to that of each.
        logits: float32 [C], what the probabilities are the softmax of.
    """

    roads: Int64
    probabilities: Float64
    seconds: Float32
    logits: Float32

    @property
    def best(self) -> int | None:
        """The most probable next road, the first of equals; None at a dead end."""
        return int(self.roads[np.argmax(self.logits)]) if len(self.roads) else None


def next_road_of(roads: Int64, logits: Float32, seconds: Float32) -> NextRoad:
    """Candidates with their probabilities.

    Raises:
        DataError: the weights give logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError("the weights give logits that are not finite: they are damaged, or training diverged")
    weights = np.exp(logits.astype(np.float64) - (logits.max() if len(logits) else 0.0))
    return NextRoad(roads, weights / weights.sum(), seconds, logits)
