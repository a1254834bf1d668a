"""Run with TRITON_INTERPRET=1: the kernel of attention along paths, on the CPU, beside the compiled loops.

python -m support.path_attention    prints the largest difference of each case as JSON
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from student_trainer.model.path_attention import Paths, Relative, attend, attend_gathered
from student_trainer.model.path_attention_kernels import attend_table

CASES = ((2, 8, 5), (3, 15, 1), (1, 6, 7))
"""Heads, width and steps of the longest path: widths of a head that are powers of two, and that are not."""


def example(heads: int, width: int, longest: int) -> tuple[Tensor, Tensor, Tensor, Paths, Relative]:
    """Queries, keys and values of last steps [R, 3 D], a table of keys and values [M, D], paths that share steps."""
    generator = torch.Generator().manual_seed(heads)
    rows, table = 6, 20
    length = torch.randint(1, longest + 1, (rows,), generator=generator)
    length[0] = longest
    last = torch.randperm(table, generator=generator)[:rows]
    step = torch.randint(table, (rows, longest), generator=generator)
    step[torch.isin(step, last)] = 0 if 0 not in last else int((~torch.isin(torch.arange(table), last)).nonzero()[0])
    step[torch.arange(rows), length - 1] = last
    pairs = torch.rand(2, rows, longest, generator=generator)
    weights = (torch.randn(size, generator=generator) for size in ((2, width // heads),) * 2 + ((width // heads,),))
    qkv, keys, values = (torch.randn(size, generator=generator) for size in ((rows, 3 * width), *((table, width),) * 2))
    return qkv, keys, values, Paths(step, length, last, *pairs), Relative(*weights, heads)


def expected(qkv: Tensor, keys: Tensor, values: Tensor, paths: Paths, relative: Relative) -> Tensor:
    """Of the compiled loops, which also put the last steps into the table."""
    narrow = Paths(paths.step.int(), paths.length, paths.last, paths.distance, paths.interval)
    return attend(qkv, keys, values, narrow, relative)


def main() -> None:
    """Largest differences of both ways from the loops; and whether a row has the same bits alone."""
    found = []
    for case in CASES:
        qkv, keys, values, paths, relative = example(*case)
        loops = expected(qkv, keys, values, paths, relative)
        query = qkv[:, : case[1]]
        kernel = attend_table(query, keys, values, *paths.read, *relative.weights, relative.heads)
        gathered = attend_gathered(query, keys, values, paths, relative)
        one = slice(3, 4)
        short = Paths(*(array[one] for array in vars(paths).values()))
        alone = attend_table(query[one], keys, values, *short.read, *relative.weights, relative.heads)
        found.append({
            "kernel": float((kernel - loops).abs().max()), "gathered": float((gathered - loops).abs().max()),
            "alone": torch.equal(alone, kernel[one]),
        })  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
