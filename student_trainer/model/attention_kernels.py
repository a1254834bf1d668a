"""GATv2 attention on an accelerator: Triton kernels over edges that are sorted by target, and by source.

A program owns the row that it writes and reads its edges in their order: no atomics, so the same bits every time. No
[E, d] tensor is made: the forward pass keeps a score for each edge and a log-sum for each target, and the backward pass
computes the rest of an edge again. Products and sums are in float32 whatever the inputs' dtype.

Shapes: M_in inputs, M_out targets, E edges, d width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from student_trainer.model.road_graph import Hop

ROWS = 4
"""Targets of a program of the backward pass; it adds up their shares of the gradients that all edges have a part in."""


@triton.jit
def _row(
    matrix: tl.tensor, place: tl.tensor, column: tl.tensor, is_column: tl.tensor, width: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """A row of a matrix of the given width, in float32."""
    return tl.load(matrix + place * width + column, mask=is_column, other=0.0).to(tl.float32)


@triton.jit
def _inner(
    left_row: tl.tensor, right_row: tl.tensor, on_attr_0: tl.tensor, on_attr_1: tl.tensor, attr: tl.tensor,
    edge: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """z of an edge: [d]."""
    return left_row + right_row + on_attr_0 * tl.load(attr + 2 * edge) + on_attr_1 * tl.load(attr + 2 * edge + 1)


@triton.jit
def _forward_kernel(
    offsets: tl.tensor, source: tl.tensor, attr: tl.tensor, left: tl.tensor, right: tl.tensor, on_attr: tl.tensor,
    att: tl.tensor, score: tl.tensor, log_sum: tl.tensor, out: tl.tensor, slope: tl.tensor, width: tl.constexpr,
    columns: tl.constexpr,
) -> None:  # fmt: skip
    target = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, columns)
    is_column = column < width
    right_row = _row(right, target, column, is_column, width)
    on_attr_0, on_attr_1 = _row(on_attr, 0, column, is_column, width), _row(on_attr, 1, column, is_column, width)
    att_row = _row(att, 0, column, is_column, width)
    top, total, summed = -float("inf"), 0.0, tl.zeros((columns,), tl.float32)
    for edge in range(tl.load(offsets + target), tl.load(offsets + target + 1)):
        left_row = _row(left, tl.load(source + edge), column, is_column, width)
        z = _inner(left_row, right_row, on_attr_0, on_attr_1, attr, edge)
        found = tl.sum(att_row * tl.where(z > 0, z, slope * z), 0)
        tl.store(score + edge, found)
        higher = tl.maximum(top, found)  # the softmax of what has been read, in one pass
        before, share = tl.exp(top - higher), tl.exp(found - higher)
        total, summed, top = total * before + share, summed * before + share * left_row, higher
    tl.store(log_sum + target, top + tl.log(total))
    tl.store(out + target * width + column, summed / total, mask=is_column)


@triton.jit
def _backward_into_kernel(
    offsets: tl.tensor, source: tl.tensor, attr: tl.tensor, left: tl.tensor, right: tl.tensor, on_attr: tl.tensor,
    att: tl.tensor, score: tl.tensor, log_sum: tl.tensor, grad_out: tl.tensor, grad_score: tl.tensor,
    grad_right: tl.tensor, shared: tl.tensor, count: tl.tensor, slope: tl.tensor, width: tl.constexpr,
    columns: tl.constexpr, rows: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, columns)
    is_column = column < width
    on_attr_0, on_attr_1 = _row(on_attr, 0, column, is_column, width), _row(on_attr, 1, column, is_column, width)
    att_row = _row(att, 0, column, is_column, width)
    of_att, of_attr_0 = tl.zeros((columns,), tl.float32), tl.zeros((columns,), tl.float32)
    of_attr_1 = tl.zeros((columns,), tl.float32)
    for target in range(program * rows, tl.minimum(program * rows + rows, count)):
        right_row = _row(right, target, column, is_column, width)
        grad_row = _row(grad_out, target, column, is_column, width)
        first, last, norm = tl.load(offsets + target), tl.load(offsets + target + 1), tl.load(log_sum + target)
        mean = 0.0
        for edge in range(first, last):
            left_row = _row(left, tl.load(source + edge), column, is_column, width)
            mean += tl.exp(tl.load(score + edge) - norm) * tl.sum(grad_row * left_row, 0)
        of_right = tl.zeros((columns,), tl.float32)
        for edge in range(first, last):
            left_row = _row(left, tl.load(source + edge), column, is_column, width)
            grad = tl.exp(tl.load(score + edge) - norm) * (tl.sum(grad_row * left_row, 0) - mean)
            tl.store(grad_score + edge, grad)
            z = _inner(left_row, right_row, on_attr_0, on_attr_1, attr, edge)
            inside = tl.where(z > 0, grad, slope * grad)
            of_att += inside * z
            inside *= att_row
            of_right += inside
            of_attr_0 += inside * tl.load(attr + 2 * edge)
            of_attr_1 += inside * tl.load(attr + 2 * edge + 1)
        tl.store(grad_right + target * width + column, of_right, mask=is_column)
    tl.store(shared + program * 3 * width + column, of_att, mask=is_column)
    tl.store(shared + program * 3 * width + width + column, of_attr_0, mask=is_column)
    tl.store(shared + program * 3 * width + 2 * width + column, of_attr_1, mask=is_column)


@triton.jit
def _backward_out_of_kernel(
    offsets: tl.tensor, edges: tl.tensor, target: tl.tensor, attr: tl.tensor, left: tl.tensor, right: tl.tensor,
    on_attr: tl.tensor, att: tl.tensor, score: tl.tensor, log_sum: tl.tensor, grad_out: tl.tensor,
    grad_score: tl.tensor, grad_left: tl.tensor, slope: tl.tensor, width: tl.constexpr, columns: tl.constexpr,
) -> None:  # fmt: skip
    origin = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, columns)
    is_column = column < width
    left_row = _row(left, origin, column, is_column, width)
    on_attr_0, on_attr_1 = _row(on_attr, 0, column, is_column, width), _row(on_attr, 1, column, is_column, width)
    att_row = _row(att, 0, column, is_column, width)
    of_left = tl.zeros((columns,), tl.float32)
    for place in range(tl.load(offsets + origin), tl.load(offsets + origin + 1)):
        edge = tl.load(edges + place)
        row = tl.load(target + edge)
        right_row = _row(right, row, column, is_column, width)
        grad_row = _row(grad_out, row, column, is_column, width)
        z = _inner(left_row, right_row, on_attr_0, on_attr_1, attr, edge)
        grad = tl.load(grad_score + edge)
        inside = tl.where(z > 0, grad, slope * grad)
        of_left += tl.exp(tl.load(score + edge) - tl.load(log_sum + row)) * grad_row + inside * att_row
    tl.store(grad_left + origin * width + column, of_left, mask=is_column)


@torch.library.custom_op("hoser::attend_sorted", mutates_args=())
def _forward(
    left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor,
    offsets: Tensor, source: Tensor, attr: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [M_out, d], scores [E] and log-sums [M_out]; `on_attr` is [2, d]."""
    out, score, log_sum = _forward_shapes(left, right, on_attr, att, offsets, source, attr, slope)
    _forward_kernel[(len(right),)](
        offsets, source, attr, left, right, on_attr, att, score, log_sum, out, slope, **_sizes(right)
    )
    return out, score, log_sum


@_forward.register_fake
def _forward_shapes(
    left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor,
    offsets: Tensor, source: Tensor, attr: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = functools.partial(left.new_empty, dtype=torch.float32)
    return wide(right.shape), wide(len(source)), wide(len(right))


@torch.library.custom_op("hoser::attend_sorted_backward", mutates_args=())
def _backward(
    left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, score: Tensor, log_sum: Tensor, grad_out: Tensor,
    offsets: Tensor, source: Tensor, attr: Tensor, source_offsets: Tensor, source_edges: Tensor, target: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `left`, of `right`, and [programs, 3, d] shares of those of `att` and both rows of `on_attr`."""
    grad_left, grad_right, shared = _backward_shapes(
        left, right, on_attr, att, score, log_sum, grad_out,
        offsets, source, attr, source_offsets, source_edges, target, slope,
    )  # fmt: skip
    grad_score, sizes = torch.empty_like(score), _sizes(right)
    values = (left, right, on_attr, att, score, log_sum, grad_out)
    _backward_into_kernel[(len(shared),)](
        offsets, source, attr, *values, grad_score, grad_right, shared, len(right), slope, rows=ROWS, **sizes
    )
    _backward_out_of_kernel[(len(left),)](
        source_offsets, source_edges, target, attr, *values, grad_score, grad_left, slope, **sizes
    )
    return grad_left, grad_right, shared


@_backward.register_fake
def _backward_shapes(
    left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, score: Tensor, log_sum: Tensor, grad_out: Tensor,
    offsets: Tensor, source: Tensor, attr: Tensor, source_offsets: Tensor, source_edges: Tensor, target: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = functools.partial(left.new_empty, dtype=torch.float32)
    return wide(left.shape), wide(right.shape), wide((-(-len(right) // ROWS), 3, right.shape[1]))


def _sizes(right: Tensor) -> dict[str, int]:
    width = right.shape[1]
    return {"width": width, "columns": triton.next_power_of_2(width), "num_warps": 1}


def attend_sorted(left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop, slope: float) -> Tensor:
    """The attention's output, float32 [M_out, d].

    Args:
        left: [M_in, d], W_l x of the inputs.
        right: [M_out, d], W_r x of the targets.
        on_attr: [d, 2], W_e.
        att: [d], a.
        hop: edges, on the same device.
        slope: of LeakyReLU below 0.
    """
    out: Tensor = _AttendSorted.apply(left, right, on_attr, att, hop, slope)  # type: ignore[no-untyped-call]
    return out


class _AttendSorted(torch.autograd.Function):
    """Keeps a score for each edge and a log-sum for each target."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop, slope: float) -> Tensor:
        values = (left.contiguous(), right.contiguous(), on_attr.T.contiguous(), att.contiguous())
        out, score, log_sum = _forward(*values, hop.offsets, hop.source, hop.attr, slope)
        ctx.save_for_backward(*values, score, log_sum)
        ctx.hop, ctx.slope = hop, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        hop: Hop = ctx.hop
        left, right, on_attr, att, *kept = ctx.saved_tensors
        grad_left, grad_right, shared = _backward(
            left, right, on_attr, att, *kept, grad_out.contiguous(), hop.offsets, hop.source, hop.attr,
            hop.source_offsets, hop.source_edges, hop.target, ctx.slope,
        )  # fmt: skip
        of_att, of_attr = shared.sum(0).split([1, 2])
        return (
            grad_left.to(left.dtype), grad_right.to(right.dtype), of_attr.T.to(on_attr.dtype), of_att[0].to(att.dtype),
            None, None,
        )  # fmt: skip
