"""Attention along paths on an accelerator: a Triton kernel that follows a path's places in the table.

A program owns a path and a head and reads the steps in their order, so a row's bits depend on nothing beside it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attend_kernel(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, path: tl.tensor, length: tl.tensor, distance: tl.tensor,
    interval: tl.tensor, relative_key: tl.tensor, relative_value: tl.tensor, bias: tl.tensor, out: tl.tensor,
    longest: tl.tensor, scale: tl.tensor, width: tl.constexpr, head_width: tl.constexpr, columns: tl.constexpr,
) -> None:  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, columns)
    is_column = column < head_width
    place = head * head_width + column
    query_row = tl.load(query + row * width + place, mask=is_column, other=0.0)
    key_on_distance = tl.load(relative_key + column, mask=is_column, other=0.0)
    key_on_interval = tl.load(relative_key + head_width + column, mask=is_column, other=0.0)
    on_distance, on_interval = tl.sum(query_row * key_on_distance, 0), tl.sum(query_row * key_on_interval, 0)
    top, total, of_distance, of_interval = -float("inf"), 0.0, 0.0, 0.0
    summed = tl.zeros((columns,), tl.float32)
    for step in range(tl.load(length + row)):
        at = tl.load(path + row * longest + step) * width + place
        away = tl.load(distance + row * longest + step)
        ago = tl.load(interval + row * longest + step)
        key = tl.load(keys + at, mask=is_column, other=0.0)
        score = (tl.sum(query_row * key, 0) + away * on_distance + ago * on_interval) * scale
        higher = tl.maximum(top, score)  # the softmax of what has been read, in one pass
        before, share = tl.exp(top - higher), tl.exp(score - higher)
        summed = summed * before + share * tl.load(values + at, mask=is_column, other=0.0)
        total, top = total * before + share, higher
        of_distance, of_interval = of_distance * before + share * away, of_interval * before + share * ago
    value_on_distance = tl.load(relative_value + column, mask=is_column, other=0.0)
    value_on_interval = tl.load(relative_value + head_width + column, mask=is_column, other=0.0)
    mean = summed + value_on_distance * of_distance + value_on_interval * of_interval
    mean = mean / total + tl.load(bias + column, mask=is_column, other=0.0)
    tl.store(out + row * width + place, mean, mask=is_column)


@torch.library.custom_op("hoser::attend_table", mutates_args=())
def attend_table(
    query: Tensor, keys: Tensor, values: Tensor, path: Tensor, length: Tensor, distance: Tensor, interval: Tensor,
    relative_key: Tensor, relative_value: Tensor, bias: Tensor, heads: int,
) -> Tensor:  # fmt: skip
    """The attention's output, [R, D], of queries [R, D] whose own keys and values are in the table."""
    out: Tensor = _attend_shape(
        query, keys, values, path, length, distance, interval, relative_key, relative_value, bias, heads
    )
    (rows, width), (_, longest) = query.shape, path.shape
    _attend_kernel[(rows, heads)](
        query.contiguous(), keys, values, path, length, distance, interval, relative_key, relative_value, bias, out,
        longest, 1 / math.sqrt(width // heads), width=width, head_width=width // heads,
        columns=triton.next_power_of_2(width // heads), num_warps=1,
    )  # fmt: skip
    return out


@attend_table.register_fake
def _attend_shape(
    query: Tensor, keys: Tensor, values: Tensor, path: Tensor, length: Tensor, distance: Tensor, interval: Tensor,
    relative_key: Tensor, relative_value: Tensor, bias: Tensor, heads: int,
) -> Tensor:  # fmt: skip
    return query.new_empty(query.shape)
