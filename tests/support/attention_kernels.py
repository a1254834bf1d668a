"""Run with TRITON_INTERPRET=1: the kernels of the road graph's attention, on the CPU, beside float64 loops.

python -m support.attention_kernels    prints the largest differences as JSON
"""

from __future__ import annotations

import json

import numpy as np
import torch

from student_trainer.model.attention_kernels import attend_sorted
from student_trainer.model.graph_attention import SLOPE, attend_rows
from student_trainer.model.road_graph import Hop, RoadGraph


def differences(hop: Hop, width: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, float]:
    """Largest differences of the output and of each gradient, as shares of the largest value or of 1."""
    inputs, targets = len(hop.source_offsets) - 1, len(hop.offsets) - 1
    shapes = {"left": (inputs, width), "right": (targets, width), "on_attr": (width, 2), "att": (width,)}
    values = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    grad_out = torch.randn(targets, width, generator=generator)
    exact = [value.double().requires_grad_() for value in values.values()]
    tried = [value.requires_grad_() for value in values.values()]
    expected = attend_rows(exact[0], exact[1], exact[2], exact[3], hop)
    found = attend_sorted(tried[0], tried[1], tried[2], tried[3], hop, SLOPE)
    assert found.dtype == torch.float32
    gradients = torch.autograd.grad(expected, exact, grad_out.double()), torch.autograd.grad(found, tried, grad_out)
    assert [gradient.dtype for gradient in gradients[1]] == [dtype] * 4
    pairs = zip(("out", *values), (expected, *gradients[0]), (found, *gradients[1]), strict=True)
    with torch.no_grad():
        return {name: float((x - y.double()).abs().max() / x.abs().max().clamp(min=1)) for name, x, y in pairs}


def main() -> None:
    """Graphs with roads of no, one and many edges; widths that are powers of two and that are not."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for roads, edges, width in ((23, 70, 12), (40, 9, 16), (6, 60, 5)):
        graph = RoadGraph(
            torch.randint(roads, (2, edges), generator=generator), torch.randn(edges, 2, generator=generator), roads, 2
        )
        for hop in (*graph.field(np.array([3, 5, 5, 1])).hops, graph.whole.hops[0]):
            found += [
                {"dtype": str(dtype), **differences(hop, width, dtype, generator)}
                for dtype in (torch.float32, torch.bfloat16)
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
