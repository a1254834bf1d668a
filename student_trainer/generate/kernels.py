"""The compiled half of the searches: the choice of beams. The steps' is `model.step_kernels`.

Shapes: R rows (paths), M steps in the table, N roads, L trips that are searched at once, K candidates of all rows.
"""

from __future__ import annotations

import numpy as np

from shared.arrays import Float64, Int64
from shared.compiled import compiled

ANY, NEVER, BEST = 0, 1, 2
"""Which roads a path may enter again; see `config.Repeats`."""


@compiled
def choose(  # noqa: C901 - one walk over the candidates, whose phases share their cursors
    chosen_row: Int64,
    chosen_road: Int64,
    chosen_log_prob: Float64,
    lane: Int64,
    offset: Int64,
    road: Int64,
    log_prob: Float64,
    parent: Int64,
    road_of: Int64,
    place: Int64,
    destination: Int64,
    least: Float64,
    best: Float64,
    width: int,
    rule: int,
) -> int:
    """The next beams: of each trip, the `width` most probable candidates of its beams that are admitted.

    Ties go to the earlier beam, then to the earlier candidate.

    Args:
        chosen_row, chosen_road, chosen_log_prob: [R * width] to fill: beam and road of each new one, by lane and
            falling log-probability.
        lane: int64 [R] trip of each beam; beams of a trip are neighbours.
        offset: int64 [R + 1] candidates of each beam; road, log_prob: [K], log_prob that of the whole path.
        parent, road_of: int64 [M] step before and road of each step in the table.
        place: int64 [R] last step of each beam.
        destination: int64 [L].
        least: float64 [L] log-probability that a new beam must exceed.
        best: float64 [L, N] highest log-probability with which a beam of the trip has entered a road; kept up.
        width: beams of a trip.
        rule: ANY, NEVER or BEST.

    Returns:
        How many there are.
    """
    count, first, rows = 0, 0, len(lane)
    taken = np.zeros(len(road), np.bool_)
    while first < rows:
        trip, end = lane[first], first
        while end < rows and lane[end] == trip:
            end += 1
        found = 0
        while found < width:
            at, row_at, highest = -1, -1, least[trip]
            for row in range(first, end):
                for i in range(offset[row], offset[row + 1]):
                    if not taken[i] and log_prob[i] > highest:
                        at, row_at, highest = i, row, log_prob[i]
            if at < 0:
                break
            taken[at] = True
            entered = road[at]
            admitted = True
            if entered != destination[trip]:
                if rule == BEST:
                    admitted = highest > best[trip, entered]
                    if admitted:
                        best[trip, entered] = highest
                elif rule == NEVER:
                    step = place[row_at]
                    while step >= 0 and admitted:
                        admitted = road_of[step] != entered
                        step = parent[step]
            if admitted:
                chosen_row[count], chosen_road[count], chosen_log_prob[count] = row_at, entered, highest
                count += 1
                found += 1
        first = end
    return count


@compiled
def keep_nearest(nearest: Int64, metres: Float64, lane: Int64, place: Int64, distance: Float64) -> None:
    """Keeps for each trip the place [L] of the step nearest to its destination, and how near [L]; ties the earlier.

    Args:
        nearest, metres: to keep up.
        lane, place: int64 [R] trip and place of each new step; distance: float64 [R] metres to the destination.
    """
    for row in range(len(lane)):
        if distance[row] < metres[lane[row]]:
            nearest[lane[row]], metres[lane[row]] = place[row], distance[row]
