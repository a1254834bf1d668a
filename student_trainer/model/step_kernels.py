"""The compiled half of a student's steps: attention along paths, and the ends of paths.

Every row is computed by itself and in one order, so its bits do not depend on the rows beside it.

Shapes: R rows (paths), W most steps of a path, M steps in the table, D width, h heads of width e = D / h; K candidates
of all rows.
"""

from __future__ import annotations

import math

import numpy as np

from shared.arrays import Bool, Float32, Float64, Int32, Int64
from shared.compiled import compiled, compiled_sums


@compiled_sums
def attend_paths(
    out: Float32,
    qkv: Float32,
    keys: Float32,
    values: Float32,
    path: Int32,
    length: Int64,
    distance: Float32,
    interval: Float32,
    relative_key: Float32,
    relative_value: Float32,
    value_bias: Float32,
    heads: int,
) -> None:
    """`RelativeAttention` of each path's last step, whose key and value it puts into the table.

    The bias of the relative keys is left out: it is the same for all keys of a query, so no weight depends on it.

    Args:
        out: float32 [R, D] to fill.
        qkv: float32 [R, 3 D] query, key and value of the last steps.
        keys, values: float32 [M, D] of the steps in the table.
        path: int32 [R, W] places of each path's steps in the table; length: int64 [R].
        distance, interval: float32 [R, W] of the last step to each step.
        relative_key, relative_value: float32 [2, e] weights of distance and interval; value_bias: float32 [e].
        heads: h.
    """
    width = out.shape[1]
    head_width = width // heads
    scale = np.float32(1 / math.sqrt(head_width))
    weight, mean = np.empty(path.shape[1], np.float32), np.empty(head_width, np.float32)
    for row in range(len(length)):
        steps = length[row]
        last = path[row, steps - 1]
        keys[last, :] = qkv[row, width : 2 * width]
        values[last, :] = qkv[row, 2 * width :]
        for head in range(heads):
            first, end = head * head_width, (head + 1) * head_width
            query = qkv[row][first:end]  # slices, so that the loops run on vector registers
            on_distance, on_interval = np.float32(0), np.float32(0)
            for c in range(head_width):
                on_distance += query[c] * relative_key[0, c]
                on_interval += query[c] * relative_key[1, c]
            greatest = np.float32(-np.inf)
            for j in range(steps):
                key = keys[path[row, j]][first:end]
                score = np.float32(0)
                for c in range(head_width):
                    score += query[c] * key[c]
                score = (score + distance[row, j] * on_distance + interval[row, j] * on_interval) * scale
                weight[j] = score
                greatest = max(greatest, score)
            total, of_distance, of_interval = np.float32(0), np.float32(0), np.float32(0)
            for j in range(steps):
                weight[j] = math.exp(weight[j] - greatest)
                total += weight[j]
                of_distance += weight[j] * distance[row, j]
                of_interval += weight[j] * interval[row, j]
            of_distance, of_interval = of_distance / total, of_interval / total
            for c in range(head_width):
                mean[c] = value_bias[c] + relative_value[0, c] * of_distance + relative_value[1, c] * of_interval
            for j in range(steps):
                value, share = values[path[row, j]][first:end], weight[j] / total
                for c in range(head_width):
                    mean[c] += share * value[c]
            out[row, first:end] = mean


@compiled
def log_softmax(log_prob: Float64, logit: Float32, length: Int64) -> None:
    """Log-probabilities [K] of each row's candidates, whose logits [K] lie back to back; length: int64 [R]."""
    end = 0
    for row in range(len(length)):
        start, end = end, end + length[row]
        greatest = -np.inf
        for i in range(start, end):
            greatest = max(greatest, np.float64(logit[i]))
        total = 0.0
        for i in range(start, end):
            total += math.exp(logit[i] - greatest)
        for i in range(start, end):
            log_prob[i] = logit[i] - greatest - math.log(total)


@compiled
def trace(path: Int32, parent: Int64, place: Int64, length: Int64) -> None:
    """Fills in the places of each path's steps, int32 [R, W], from its last one back.

    Args:
        path: to fill, up to each path's length [R].
        parent: int64 [M] the step before each step.
        place: int64 [R] last steps.
    """
    for row in range(len(place)):
        step = place[row]
        for j in range(length[row] - 1, -1, -1):
            path[row, j] = step
            step = parent[step]


@compiled
def mark(alive: Bool, parent: Int64, place: Int64) -> None:
    """Marks in `alive` [M] the steps of the paths that end at these places; -1 is none."""
    for row in range(len(place)):
        step = place[row]
        while step >= 0 and not alive[step]:
            alive[step] = True
            step = parent[step]
