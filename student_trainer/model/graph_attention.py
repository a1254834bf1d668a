"""GATv2 attention over the edges of a hop: out_i = sum_j alpha_ij l_j, alpha_i = softmax_j a . LeakyReLU(z_ij).

z_ij = l_j + r_i + W_e e_ij. Three formulations, the same up to rounding:

    attend_rows     compiled loops over the sorted edges, which keep no [E, d] tensor for the backward pass: CPU
    attend_sorted   the same in kernels without atomics (`attention_kernels.py`): CUDA, where Triton is installed
    attend_edges    torch operations over [E, d] tensors: other accelerators; on some of them atomics change last bits

Shapes: M_in inputs, M_out targets, E edges, d width.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.arrays import Float64, Floating, Int64
from shared.compiled import compiled_sums
from student_trainer.model.road_graph import Hop

HAS_KERNELS = importlib.util.find_spec("triton") is not None
"""Whether there are kernels for CUDA; Triton comes with torch's builds for it."""
SLOPE = 0.2
"""Of LeakyReLU below 0."""
CHUNKS = 16
"""Pieces of the work. Their number is fixed, and what they add up is added in their order, so that the number of
threads changes no bit."""


def attend(left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop) -> Tensor:
    """The attention's output, [M_out, d], in float32 (float64 where `left` is).

    Args:
        left: [M_in, d], W_l x of the inputs.
        right: [M_out, d], W_r x of the targets.
        on_attr: [d, 2], W_e.
        att: [d], a.
        hop: edges.
    """
    if left.device.type == "cuda" and HAS_KERNELS:
        from student_trainer.model.attention_kernels import attend_sorted  # Triton takes a second to import

        return attend_sorted(left, right, on_attr, att, hop, SLOPE)
    if left.device.type != "cpu":
        return attend_edges(left, right, on_attr, att, hop)
    dtype = torch.float64 if left.dtype == torch.float64 else torch.float32  # under autocast, too
    with torch.autocast("cpu", enabled=False):
        arguments = (left.to(dtype), right.to(dtype), on_attr.to(dtype), att.to(dtype))
        return attend_rows(*arguments, hop)


def attend_edges(left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop) -> Tensor:
    """`attend` in torch operations; softmax and sum in float32 under autocast, too."""
    message = left.index_select(0, hop.source)
    score = message + right.index_select(0, hop.target) + F.linear(hop.attr.to(left.dtype), on_attr.to(left.dtype))
    score = F.leaky_relu(score, SLOPE) @ att.to(score.dtype)
    wide = torch.promote_types(score.dtype, torch.float32)
    weighted = segment_softmax(score.to(wide), hop.target, len(right))[:, None] * message
    return weighted.new_zeros(right.shape).index_add(0, hop.target, weighted)


def segment_softmax(score: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of score [E] over the entries of each segment [E]."""
    top = score.new_full((num_segments,), -torch.inf).scatter_reduce(0, segment, score.detach(), "amax")
    exp = (score - top[segment]).exp()
    total = exp.new_zeros(num_segments).index_add(0, segment, exp)
    return exp / total[segment]


def attend_rows(left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop) -> Tensor:
    """`attend` by compiled loops; all of one dtype, float32 or float64, on the CPU."""
    out: Tensor = _AttendRows.apply(left, right, on_attr, att, hop)  # type: ignore[no-untyped-call]
    return out


class _AttendRows(torch.autograd.Function):
    """Keeps the attention weights [E]; the rest of an edge is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, on_attr: Tensor, att: Tensor, hop: Hop) -> Tensor:
        left, right, on_attr, att = left.contiguous(), right.contiguous(), on_attr.T.contiguous(), att.contiguous()
        alpha, out = left.new_empty(len(hop.source)), torch.empty_like(right)
        values = _numpy(left, right, on_attr, att)
        edges = _numpy(hop.offsets, hop.source, hop.attr.to(left.dtype))
        _in_chunks(hop.offsets, functools.partial(_forward, *edges, *values, *_numpy(alpha, out)))
        ctx.save_for_backward(left, right, on_attr, att, alpha)
        ctx.hop = hop
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        left, right, on_attr, att, alpha = ctx.saved_tensors
        hop: Hop = ctx.hop
        grad_out, attr = grad_out.contiguous(), hop.attr.to(left.dtype)
        grad_score = torch.empty_like(alpha)
        grad_left, grad_right = torch.empty_like(left), torch.empty_like(right)
        values = _numpy(left, right, on_attr, att, alpha, grad_out, grad_score)
        into = functools.partial(_backward_into, *_numpy(hop.offsets, hop.source, attr), *values, *_numpy(grad_right))
        shared = sum(_in_chunks(hop.offsets, into))  # float64 [3, d]: of a and of both columns of W_e
        out_of = _numpy(hop.source_offsets, hop.source_edges, hop.target, attr)
        _in_chunks(hop.source_offsets, functools.partial(_backward_out_of, *out_of, *values, *_numpy(grad_left)))
        grad_shared = torch.from_numpy(shared).to(left.dtype)
        return grad_left, grad_right, grad_shared[1:].T, grad_shared[0], None


def _numpy(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def _in_chunks(offsets: Tensor, work: Callable[[int, int], Any]) -> list[Any]:
    """`work(first, last)` of rows with about as many edges each, by torch's number of threads; results in order."""
    edges = offsets.numpy()
    cuts = np.searchsorted(edges, np.linspace(0, edges[-1], CHUNKS + 1)[1:-1])
    bounds = [0, *cuts.tolist(), len(edges) - 1]
    threads = torch.get_num_threads()
    if threads == 1:
        return list(map(work, bounds[:-1], bounds[1:]))
    return list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, "graph-attention")


@compiled_sums
def _forward(
    offsets: Int64, source: Int64, attr: Floating, left: Floating, right: Floating, on_attr: Floating, att: Floating,
    alpha: Floating, out: Floating, first: int, last: int,
) -> None:  # fmt: skip
    """Fills alpha of the edges into targets first..last-1, and out."""
    slope = left.dtype.type(SLOPE)
    for i in range(first, last):
        top = left.dtype.type(-np.inf)
        for k in range(offsets[i], offsets[i + 1]):
            j, e0, e1 = source[k], attr[k, 0], attr[k, 1]
            score = left.dtype.type(0)
            for c in range(left.shape[1]):
                z = left[j, c] + right[i, c] + on_attr[0, c] * e0 + on_attr[1, c] * e1
                score += att[c] * (z if z > 0 else slope * z)
            alpha[k] = score
            top = max(top, score)
        total = left.dtype.type(0)
        for k in range(offsets[i], offsets[i + 1]):
            alpha[k] = np.exp(alpha[k] - top)
            total += alpha[k]
        out[i] = 0
        for k in range(offsets[i], offsets[i + 1]):
            j = source[k]
            alpha[k] /= total
            weight = alpha[k]
            for c in range(left.shape[1]):
                out[i, c] += weight * left[j, c]


@compiled_sums
def _backward_into(
    offsets: Int64, source: Int64, attr: Floating, left: Floating, right: Floating, on_attr: Floating, att: Floating,
    alpha: Floating, grad_out: Floating, grad_score: Floating, grad_right: Floating, first: int, last: int,
) -> Float64:  # fmt: skip
    """Fills grad_score of the edges into targets first..last-1, and grad_right; returns their share of a's and W_e's
    gradients, float64 [3, d]."""
    slope, width = left.dtype.type(SLOPE), left.shape[1]
    shared = np.zeros((3, width))
    own = np.zeros((3, width), left.dtype)  # one target's, in the narrow dtype
    for i in range(first, last):
        mean = left.dtype.type(0)
        for k in range(offsets[i], offsets[i + 1]):
            j = source[k]
            product = left.dtype.type(0)
            for c in range(width):
                product += grad_out[i, c] * left[j, c]
            grad_score[k] = product
            mean += alpha[k] * product
        grad_right[i] = 0
        own[:] = 0
        for k in range(offsets[i], offsets[i + 1]):
            j, e0, e1 = source[k], attr[k, 0], attr[k, 1]
            grad_score[k] = alpha[k] * (grad_score[k] - mean)
            grad = grad_score[k]
            for c in range(width):
                z = left[j, c] + right[i, c] + on_attr[0, c] * e0 + on_attr[1, c] * e1
                inside = grad if z > 0 else slope * grad
                own[0, c] += inside * z
                inside *= att[c]
                grad_right[i, c] += inside
                own[1, c] += inside * e0
                own[2, c] += inside * e1
        for row in range(3):
            for c in range(width):
                shared[row, c] += own[row, c]
    return shared


@compiled_sums
def _backward_out_of(
    offsets: Int64, edges: Int64, target: Int64, attr: Floating, left: Floating, right: Floating, on_attr: Floating,
    att: Floating, alpha: Floating, grad_out: Floating, grad_score: Floating, grad_left: Floating,
    first: int, last: int,
) -> None:  # fmt: skip
    """Fills grad_left of inputs first..last-1."""
    slope = left.dtype.type(SLOPE)
    for j in range(first, last):
        grad_left[j] = 0
        for place in range(offsets[j], offsets[j + 1]):
            k = edges[place]
            i, e0, e1 = target[k], attr[k, 0], attr[k, 1]
            weight, grad = alpha[k], grad_score[k]
            for c in range(left.shape[1]):
                z = left[j, c] + right[i, c] + on_attr[0, c] * e0 + on_attr[1, c] * e1
                inside = grad if z > 0 else slope * grad
                grad_left[j, c] += weight * grad_out[i, c] + inside * att[c]
