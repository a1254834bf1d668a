"""Run with TRITON_INTERPRET=1: the teacher's kernels on the CPU, beside float64.

python -m support.teacher_kernels    prints the largest differences as JSON
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from teacher_server.engine import kernels
from teacher_server.lmtad.model import attend_by_gathering, future_of


def attention_inputs(
    rows: int, shape: tuple[int, int], width: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As a model makes them: queries, keys and values are parts of a matrix, rows and places columns of another."""
    heads, size = shape
    joined = torch.randn(rows, 3 * heads * size, generator=generator).to(dtype)
    query, key, value = torch.split(joined, heads * size, -1)
    inputs = torch.randint(rows, (rows, 2 + width), generator=generator, dtype=torch.int32)
    inputs[:, 1] %= width
    return query.view(rows, heads, size), key, value, inputs[:, 2:], inputs[:, 1]


def attention_difference(*, rows: int, shape: tuple[int, int], width: int, dtype: torch.dtype) -> float:
    """Largest difference from float64."""
    generator = torch.Generator().manual_seed(width)
    query, key, value, seen, place = attention_inputs(rows, shape, width, dtype, generator)
    found = kernels.attend(query, key, value, seen, place)
    assert found.dtype == dtype and found.shape == value.shape
    exact = attend_by_gathering(query.double(), key.double(), value.double(), seen, future_of(place, width))
    return float((found.double() - exact).abs().max())


def place_does_not_matter(shape: tuple[int, int], width: int) -> bool:
    """Whether some rows have the same bits among others and alone."""
    query, key, value, seen, place = attention_inputs(40, shape, width, torch.float32, torch.Generator().manual_seed(9))
    whole = kernels.attend(query, key, value, seen, place)
    part = kernels.attend(query[7:19], key, value, seen[7:19], place[7:19])
    return torch.equal(whole[7:19], part)


def main() -> None:
    """Widths of one step and of several, heads and sizes that are powers of two and that are not."""
    shapes = [((3, 8), 3), ((2, 64), 5), ((5, 24), 9), ((12, 16), 33), ((1, 300), 17)]
    found: list[dict[str, object]] = [
        {
            "what": f"attend {shape} {width}",
            "dtype": str(dtype),
            "difference": attention_difference(rows=30, shape=shape, width=width, dtype=dtype),
        }
        for shape, width in shapes
        for dtype in (torch.float32, torch.float16)
    ]
    found += [{"what": "places", "dtype": "", "difference": float(not place_does_not_matter(*case))} for case in shapes]
    generator = torch.Generator().manual_seed(0)
    for states_dtype, head_dtype, width in (
        (torch.float32, torch.float16, 24),
        (torch.float16, torch.float16, 64),
        (torch.float32, torch.float32, 5),
    ):
        states = torch.randn(20, width, generator=generator).to(states_dtype)
        head = torch.randn(50, width, generator=generator).to(head_dtype)
        pairs = torch.stack([torch.randint(n, (70,), generator=generator, dtype=torch.int32) for n in (20, 50)], 1)
        exact = (states[pairs[:, 0]].double() * head[pairs[:, 1]].double()).sum(-1)
        difference = float((kernels.dots(states, head, pairs).double() - exact).abs().max())
        found.append({"what": f"dots {width}", "dtype": "torch.float32", "difference": difference})
    assert kernels.dots(states, head, pairs[:0]).shape == (0,)
    for width in (5, 2048, 5000):
        logits = 5 * torch.randn(6, width, generator=generator)
        logits[0, : width // 2] = -torch.inf
        logits[1] += 60
        exact = torch.logsumexp(logits.double(), -1)
        difference = float((kernels.log_sums(logits).double() - exact).abs().max())
        found.append({"what": f"log_sums {width}", "dtype": "torch.float32", "difference": difference})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
