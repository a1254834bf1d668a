"""The road encoder against torch-geometric's own layer."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GATv2Conv

from student_trainer.model.roads import GATv2Layer, RoadGraph, segment_softmax


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**31))
def test_layer_equals_torch_geometric(num_roads: int, num_edges: int, seed: int) -> None:
    """Same outputs and gradients on random multigraphs with self-loops and isolated roads."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, num_roads, (2, num_edges), generator=generator)
    attr = torch.rand(num_edges, 2, generator=generator)
    x = torch.randn(num_roads, 6, generator=generator, requires_grad=True)
    ours = GATv2Layer(6, 8, edge_dim=2)
    reference = GATv2Conv(6, 8, heads=1, edge_dim=2)
    reference.load_state_dict(ours.state_dict())
    out = ours(x, RoadGraph(edges, attr, num_roads))
    expected = reference(x, edges, attr)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(out.shape, generator=generator)
    grads = torch.autograd.grad((out * weight).sum(), [x, *ours.parameters()])
    expected_grads = torch.autograd.grad((expected * weight).sum(), [x, *dict(reference.named_parameters()).values()])
    by_name = dict(zip(["x", *dict(ours.named_parameters())], grads, strict=True))
    for name, grad in zip(["x", *dict(reference.named_parameters())], expected_grads, strict=True):
        torch.testing.assert_close(by_name[name], grad, rtol=1e-4, atol=1e-5)


def test_segment_softmax_by_definition() -> None:
    score = torch.tensor([1.0, 2.0, 1000.0, -3.0, 1001.0])
    segment = torch.tensor([0, 0, 1, 0, 1])
    result = segment_softmax(score, segment, 3)
    expected = torch.cat([score[[0, 1, 3]].softmax(0), score[[2, 4]].softmax(0)])[[0, 1, 3, 2, 4]]
    torch.testing.assert_close(result, expected)
