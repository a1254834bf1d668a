"""`RelativeAttention` of the last steps of paths whose other steps lie in a table: keys and values stay where they are.

    step_kernels.attend_paths   compiled loops: CPU
    attend_table           a Triton kernel, one program a path and head: CUDA, where Triton is installed
    attend_gathered        torch operations over the paths' keys and values side by side: other accelerators

The same up to rounding. In the first two a path's numbers are summed by themselves and step by step, so that their bits
depend neither on the paths beside it nor on how long these are.

Shapes: R paths, W most steps of a path, M steps in the table, D width, h heads of width e = D / h.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from student_trainer.model import step_kernels
from student_trainer.model.graph_attention import HAS_KERNELS
from student_trainer.model.trajectory import RelativeAttention

PAIRS = 1 << 17
"""Steps of paths that are gathered at once: with HOSER's width 128 MiB of keys."""


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """R paths, on the student's device.

    Attributes:
        step: int [R, W] places of each path's steps in the table.
        length: int64 [R] steps of each; last: int64 [R] place of the last one.
        distance, interval: float32 [R, W] of the last step to each step; finite beyond a path, too.
    """

    step: Tensor
    length: Tensor
    last: Tensor
    distance: Tensor
    interval: Tensor

    @property
    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps, lengths, distances, intervals."""
        return self.step, self.length, self.distance, self.interval

    def rows(self, part: slice) -> Paths:
        """Some of them."""
        return Paths(*(array[part] for array in vars(self).values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Relative:
    """What distance and interval of two steps mean to a block's attention.

    The bias of the relative keys is left out: it is the same for all keys of a query, so no weight depends on it.

    Attributes:
        key, value: float32 [2, e] weights of distance and interval.
        bias: float32 [e] of the values.
        heads: h.
    """

    key: Tensor
    value: Tensor
    bias: Tensor
    heads: int

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.key, self.value, self.bias

    @classmethod
    def of(cls, attention: RelativeAttention) -> Relative:
        """Of a block."""
        key, value = attention.relative_position_emb_k, attention.relative_position_emb_v
        weights = (key.weight.T.contiguous(), value.weight.T.contiguous(), value.bias)
        of_key, of_value, bias = (weight.detach() for weight in weights)
        return cls(of_key, of_value, bias, attention.num_heads)


def attend(qkv: Tensor, keys: Tensor, values: Tensor, paths: Paths, relative: Relative) -> Tensor:
    """The attention's output before its projection, float32 [size, D]; zeros beyond the R paths.

    Args:
        qkv: float32 [size, 3 D], query, key and value of the paths' last steps, and what pads a tile.
        keys, values: float32 [M, D] of the steps in the table; those of the last steps are put there.
    """
    if qkv.device.type != "cpu":
        return attend_there(qkv, keys, values, paths, relative)
    out = qkv.new_zeros(len(qkv), keys.shape[1])
    tensors = (out, qkv, keys, values, *paths.read, *relative.weights)
    arrays: list[Any] = [tensor.numpy() for tensor in tensors]
    step_kernels.attend_paths(*arrays, relative.heads)  # type: ignore[call-arg]
    return out


def attend_there(qkv: Tensor, keys: Tensor, values: Tensor, paths: Paths, relative: Relative) -> Tensor:
    """As `attend`, on an accelerator."""
    width, rows = keys.shape[1], len(paths.length)
    out = qkv.new_zeros(len(qkv), width)
    query, key, value = torch.split(qkv[:rows], width, dim=1)
    keys[paths.last], values[paths.last] = key, value
    if HAS_KERNELS:
        from student_trainer.model.path_attention_kernels import attend_table  # Triton takes a second to import

        out[:rows] = attend_table(query, keys, values, *paths.read, *relative.weights, relative.heads)
        return out
    size = max(1, PAIRS // paths.step.shape[1])
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        out[part] = attend_gathered(query[part], keys, values, paths.rows(part), relative)
    return out


def attend_gathered(query: Tensor, keys: Tensor, values: Tensor, paths: Paths, relative: Relative) -> Tensor:
    """The attention's output, [R, D], of queries [R, D] whose own keys and values are in the table."""
    rows, steps = paths.step.shape
    query = query.view(rows, relative.heads, -1)
    key, value = (table[paths.step].view(rows, steps, relative.heads, -1) for table in (keys, values))
    on_distance, on_interval = torch.split(query @ relative.key.T, 1, dim=-1)  # [R, h, 1]
    distance, interval = paths.distance[:, None], paths.interval[:, None]
    score = torch.einsum("rhe,rshe->rhs", query, key) + distance * on_distance + interval * on_interval
    hidden = torch.arange(steps, device=query.device) >= paths.length[:, None]
    share = (score / math.sqrt(query.shape[-1])).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    sums = torch.stack([(share * pair).sum(-1) for pair in (distance, interval)], dim=-1)
    out = torch.einsum("rhs,rshe->rhe", share, value) + sums @ relative.value + relative.bias
    return out.flatten(1)
