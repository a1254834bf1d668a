"""The teacher's own kernels for accelerators (Triton): attention over chosen rows, candidates' logits, normalisers.

Each program computes one row's heads, one candidate, or one row's normaliser from its own inputs alone, in an order
that is fixed when the kernel is compiled: so the bits of a result depend neither on what else is computed nor on
where, by construction. Products and sums are in float32, as in the reference (`lmtad.model.attend_by_gathering`,
`fused.dots_by_gathering`).

Shapes: M rows, S of them attending, each to T rows; H heads, D width; V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES = 8
"""Most rows that a program reads at once; longer contexts take several steps."""
PROGRAM_COLUMNS = 256
"""Columns of the heads that a program computes together."""
LOGITS = 2048
"""Logits that a normaliser reads at once."""
ANYWHERE = ["seen", "place", "seen_stride", "place_stride"]
"""Arguments whose alignment makes no other code: all tiles share one compiled kernel, and starting is faster."""


@triton.jit(do_not_specialize=ANYWHERE)
def _attend_kernel(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, seen: tl.tensor, place: tl.tensor, out: tl.tensor,
    query_stride: tl.tensor, key_stride: tl.tensor, value_stride: tl.tensor, seen_stride: tl.tensor,
    place_stride: tl.tensor, scale: tl.tensor, heads: tl.constexpr, size: tl.constexpr, together: tl.constexpr,
    columns: tl.constexpr, places: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.program_id(1) * together + tl.arange(0, together), tl.arange(0, columns)
    is_there = (head[:, None] < heads) & (column[None, :] < size)
    at = head[:, None] * size + column[None, :]
    q = tl.load(query + row * query_stride + at, mask=is_there, other=0.0).to(tl.float32)
    last = tl.load(place + row * place_stride)
    top = tl.full((together,), -float("inf"), tl.float32)
    total, summed = tl.zeros((together,), tl.float32), tl.zeros((together, columns), tl.float32)
    for first in range(0, last + 1, places):
        step = first + tl.arange(0, places)
        is_seen = step <= last
        other = tl.load(seen + row * seen_stride + step, mask=is_seen, other=0).to(tl.int64)
        inside = is_seen[:, None, None] & is_there[None, :, :]
        k = tl.load(key + other[:, None, None] * key_stride + at[None, :, :], mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(is_seen[:, None], tl.sum(q[None, :, :] * k, 2) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        before, shares = tl.exp(top - higher), tl.exp(scores - higher[None, :])
        v = tl.load(value + other[:, None, None] * value_stride + at[None, :, :], mask=inside, other=0.0).to(tl.float32)
        total = total * before + tl.sum(shares, 0)
        summed = summed * before[:, None] + tl.sum(shares[:, :, None] * v, 0)
        top = higher
    y = summed / total[:, None]
    tl.store(out + row * (heads * size) + at, y.to(out.dtype.element_ty), mask=is_there)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, place: Tensor) -> Tensor:
    """Attention of some rows, each over rows of its own choice: the fused `lmtad.model.attend_by_gathering`.

    Args:
        query: [S, H, D / H].
        key: [M, D]; its rows may be apart, its columns not.
        value: likewise.
        seen: int [S, T], rows that each may attend to.
        place: int [S], the last of these that it does attend to.

    Returns:
        [S, D], in the value's dtype.
    """
    rows, heads, size = query.shape
    out = torch.empty(rows, heads * size, dtype=value.dtype, device=value.device)
    columns = triton.next_power_of_2(size)
    together = min(triton.next_power_of_2(heads), max(1, PROGRAM_COLUMNS // columns))
    _attend_kernel[(rows, triton.cdiv(heads, together))](
        query, key, value, seen, place, out,
        query.stride(0), key.stride(0), value.stride(0), seen.stride(0), place.stride(0), size**-0.5,
        heads=heads, size=size, together=together, columns=columns,
        places=min(PLACES, triton.next_power_of_2(seen.shape[1])), num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _dot_kernel(
    states: tl.tensor, head: tl.tensor, pairs: tl.tensor, out: tl.tensor, width: tl.constexpr, columns: tl.constexpr,
) -> None:  # fmt: skip
    candidate = tl.program_id(0).to(tl.int64)
    state, token = tl.load(pairs + 2 * candidate).to(tl.int64), tl.load(pairs + 2 * candidate + 1).to(tl.int64)
    column = tl.arange(0, columns)
    is_there = column < width
    x = tl.load(states + state * width + column, mask=is_there, other=0.0).to(tl.float32)
    y = tl.load(head + token * width + column, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + candidate, tl.sum(x * y, 0))


def dots(states: Tensor, head: Tensor, pairs: Tensor) -> Tensor:
    """Logit of each pair of state and token.

    Args:
        states: [U, D], contiguous.
        head: [V, D], contiguous.
        pairs: int [n, 2], contiguous.

    Returns:
        float32 [n].
    """
    out = torch.empty(len(pairs), dtype=torch.float32, device=states.device)
    width = states.shape[1]
    if len(pairs):
        _dot_kernel[(len(pairs),)](
            states, head, pairs, out, width=width, columns=triton.next_power_of_2(width), num_warps=1
        )
    return out


@triton.jit
def _log_sum_kernel(logits: tl.tensor, out: tl.tensor, width: tl.constexpr, columns: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    top, total = tl.full((columns,), -float("inf"), tl.float32), tl.zeros((columns,), tl.float32)
    for first in range(0, width, columns):
        column = first + tl.arange(0, columns)
        is_there = column < width
        found = tl.load(logits + row * width + column, mask=is_there, other=-float("inf"))
        higher = tl.maximum(top, found)
        known = tl.where(higher > -float("inf"), higher, 0.0)  # -inf - -inf is no number
        total = total * tl.exp(top - known) + tl.exp(found - known)
        top = higher
    highest = tl.max(top, 0)
    tl.store(out + row, highest + tl.log(tl.sum(total * tl.exp(top - highest), 0)))


def log_sums(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, none of them only -inf: float32 [n, V], contiguous -> float32 [n]."""
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    width = logits.shape[1]
    if len(logits):
        _log_sum_kernel[(len(logits),)](
            logits, out, width=width, columns=min(LOGITS, triton.next_power_of_2(width)), num_warps=4
        )
    return out
