"""The road encoder against torch-geometric's own layer, and the field of a batch against the whole graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network
from torch import Tensor
from torch_geometric.nn import GCN, GATv2Conv
from torch_geometric.utils import add_self_loops, k_hop_subgraph, remove_self_loops

from student_trainer.model.config import ModelConfig
from student_trainer.model.graph_attention import attend, attend_edges, attend_rows, segment_softmax
from student_trainer.model.road_graph import Field, Hop, RoadGraph, with_own_loops
from student_trainer.model.roads import GATv2Layer, RoadGAT, RoadNetworkEncoder, ZoneGCN, normalised_adjacency

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Hop], Tensor]

roads_count, edges_count, seeds = st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**31)


def random_graph(num_roads: int, num_edges: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A multigraph with self-loops and isolated roads: edges [2, E] and attributes [E, 2], float64."""
    edges = torch.randint(0, num_roads, (2, num_edges), generator=generator)
    return edges, torch.rand(num_edges, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("formulation", [attend_edges, attend_rows])
@settings(deadline=None, max_examples=30)
@given(roads_count, edges_count, seeds)
def test_layer_equals_torch_geometric(formulation: Attend, num_roads: int, num_edges: int, seed: int) -> None:
    """Same outputs and gradients in float64, by both formulations."""
    generator = torch.Generator().manual_seed(seed)
    edges, attr = random_graph(num_roads, num_edges, generator)
    x = torch.randn(num_roads, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = GATv2Layer(6, 8, edge_dim=2).double()
    with torch.no_grad():  # gradients of zero biases would hide a mistake
        for parameter in ours.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator))
    reference = GATv2Conv(6, 8, heads=1, edge_dim=2).double()
    reference.load_state_dict(ours.state_dict())
    hop = RoadGraph(edges, attr, num_roads, 1).whole.hops[0]
    values = (ours.lin_l(x), ours.lin_r(x), ours.lin_edge.weight, ours.att.view(-1))
    out, expected = formulation(*values, hop) + ours.bias, reference(x, edges, attr)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad((out * weight).sum(), [x, *ours.parameters()])
    expected_grads = torch.autograd.grad((expected * weight).sum(), [x, *dict(reference.named_parameters()).values()])
    by_name = dict(zip(["x", *dict(ours.named_parameters())], grads, strict=True))
    for name, grad in zip(["x", *dict(reference.named_parameters())], expected_grads, strict=True):
        torch.testing.assert_close(by_name[name], grad, rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=40)
@given(roads_count, edges_count, st.integers(1, 3), seeds)
def test_a_field_gives_what_the_whole_graph_gives(num_roads: int, num_edges: int, layers: int, seed: int) -> None:
    """Outputs of the roads that are read, and gradients of everything, in float64."""
    generator = torch.Generator().manual_seed(seed)
    edges, attr = random_graph(num_roads, num_edges, generator)
    x = torch.randn(num_roads, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    gat = RoadGAT(6, layers).double()
    graph = RoadGraph(edges, attr, num_roads, layers)
    read = torch.randint(0, num_roads, (5,), generator=generator)
    field = graph.field(read.numpy())
    assert field.inputs is not None and field.row is not None
    found = gat(x[field.inputs], field.hops)[field.row[read]]
    expected = gat(x, graph.whole.hops)[read]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, whole in zip(
        torch.autograd.grad((found * weight).sum(), [x, *gat.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x, *gat.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(roads_count, edges_count, st.integers(0, 3), seeds)
def test_a_field_holds_the_roads_that_are_so_near_and_no_others(
    num_roads: int, num_edges: int, layers: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges, attr = random_graph(num_roads, num_edges, generator)
    read = torch.randint(0, num_roads, (3,), generator=generator)
    field = RoadGraph(edges, attr, num_roads, layers).field(read.numpy())
    near, _, _, _ = k_hop_subgraph(read.unique(), layers, edges, num_nodes=num_roads)
    assert field.inputs is not None and field.row is not None
    assert field.inputs.tolist() == sorted(near.tolist())
    rows = field.row[read.unique()]
    assert rows.tolist() == list(range(len(rows)))


def test_a_road_outside_the_field_is_an_error() -> None:
    edges, attr = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 2)
    field = RoadGraph(edges, attr, 3, 1).field(np.array([1]))
    assert field.row is not None
    with pytest.raises(IndexError):
        torch.zeros(1, 4).index_select(0, field.row[torch.tensor([2])])


def test_threads_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    edges, attr = random_graph(300, 4000, generator)
    field = RoadGraph(edges, attr.float(), 300, 2).field(np.arange(0, 300, 3))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_bits(field))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def _bits(field: Field) -> list[Tensor]:
    """Output and gradients of the attention alone: products of matrices are torch's affair."""
    generator = torch.Generator().manual_seed(1)
    hop = field.hops[0]
    assert field.inputs is not None and hop.own is not None
    shapes = [(len(field.inputs), 16), (len(hop.own), 16), (16, 2), (16,)]
    values = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    out = attend(values[0], values[1], values[2], values[3], hop)
    return [out.detach(), *torch.autograd.grad((out**2).sum(), values)]


@pytest.mark.parametrize("formulation", [attend_edges, attend_rows])
def test_what_is_not_finite_stays_visible(formulation: Attend) -> None:
    """A NaN or an infinity in a road's features must reach the loss, which is what skips the step."""
    edges, attr = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 2)
    hop = RoadGraph(edges, attr, 4, 1).whole.hops[0]
    for bad in (torch.nan, torch.inf):
        left, right = torch.ones(4, 3), torch.ones(4, 3)
        left[0] = bad
        out = formulation(left, right, torch.ones(3, 2), torch.ones(3), hop)
        assert out.isfinite().all(dim=1).tolist() == [False, False, True, True]


def test_segment_softmax_by_definition() -> None:
    score = torch.tensor([1.0, 2.0, 1000.0, -3.0, 1001.0])
    segment = torch.tensor([0, 0, 1, 0, 1])
    result = segment_softmax(score, segment, 3)
    expected = torch.cat([score[[0, 1, 3]].softmax(0), score[[2, 4]].softmax(0)])[[0, 1, 3, 2, 4]]
    torch.testing.assert_close(result, expected)


def zones_of(encoder: RoadNetworkEncoder) -> Tensor:
    """All zones' embeddings."""
    zones: Tensor = encoder.zone_gcn(encoder.zone_id_emb.weight, encoder._flow)
    return zones


def reference_of(encoder: RoadNetworkEncoder) -> GCN:
    """torch-geometric's own layers with the weights of the encoder's, in the same order."""
    width = encoder.zone_id_emb.embedding_dim
    reference = GCN(width, width, len(encoder.zone_gcn.convs)).to(encoder.zone_id_emb.weight.dtype)
    assert [name for name, _ in reference.named_parameters()] == [
        name for name, _ in encoder.zone_gcn.named_parameters()
    ]
    reference.load_state_dict(encoder.zone_gcn.state_dict())
    return reference


def test_a_seed_gives_the_zones_the_weights_that_the_reference_draws() -> None:
    """And leaves the generator where that does, so that all that is drawn after them is the same."""
    torch.manual_seed(3)
    theirs, after = GCN(6, 6, 2).state_dict(), torch.rand(())
    torch.manual_seed(3)
    ours = ZoneGCN(6, 2).state_dict()
    assert torch.equal(torch.rand(()), after)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@given(roads_count, edges_count, seeds)
def test_loops_equal_torch_geometric(num_roads: int, num_edges: int, seed: int) -> None:
    """Old ones go; a new one has the mean of what comes in, to the last bit."""
    edges, attr = random_graph(num_roads, num_edges, torch.Generator().manual_seed(seed))
    expected = add_self_loops(*remove_self_loops(edges, attr), fill_value="mean", num_nodes=num_roads)
    for ours, theirs in zip(with_own_loops(edges, attr, num_roads), expected, strict=True):
        assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 3), seeds)
def test_zones_equal_torch_geometric(num_zones: int, num_edges: int, layers: int, seed: int) -> None:
    """Outputs and gradients in float64, with self-loops, edges without weight, and zones that nothing flows into."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(num_zones**2, generator=generator)[:num_edges]
    edges = torch.stack([places // num_zones, places % num_zones])
    weight = torch.rand(edges.shape[1], generator=generator, dtype=torch.float64)
    weight *= torch.arange(len(weight)) % 5 > 0
    network, _ = random_network(10)
    encoder = RoadNetworkEncoder(
        ModelConfig(road_id_dim=4, road_attr_dim=1, num_graph_layers=layers, zone_embeddings=num_zones), network
    ).double()
    encoder.zone_edge_index, encoder.zone_edge_weight = edges, weight
    with torch.no_grad():
        for parameter in encoder.zone_gcn.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator))
    reference = reference_of(encoder)
    found = zones_of(encoder)
    expected = reference(encoder.zone_id_emb.weight, edges, weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((found * grad).sum(), [encoder.zone_id_emb.weight, *encoder.zone_gcn.parameters()]),
        torch.autograd.grad((expected * grad).sum(), [encoder.zone_id_emb.weight, *reference.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_zones_matrix_by_hand() -> None:
    """1 flows into 0 with weight 3; 0 has a self-loop of weight 1, 1 gets one."""
    found = normalised_adjacency(torch.tensor([[1, 0], [0, 0]]), torch.tensor([3.0, 1.0]), 2)
    torch.testing.assert_close(found, torch.tensor([[1 / 4, 3 / 2], [0.0, 1.0]]))


def test_the_zones_matrix_follows_its_graph() -> None:
    """Weights bring another graph, and another dtype is not the old one's numbers; nothing of it is in the weights."""
    network, _ = random_network(10)
    config = ModelConfig(road_id_dim=4, road_attr_dim=1)
    encoder, other = RoadNetworkEncoder(config, network), RoadNetworkEncoder(config, network)
    assert not [name for name in encoder.state_dict() if "adjacency" in name]
    with torch.inference_mode():
        before = encoder.zone_adjacency
    assert encoder.zone_adjacency is before and not before.is_inference()  # made once, and good for training
    other.zone_edge_weight *= 2
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder.zone_adjacency, other.zone_adjacency) and not torch.equal(encoder.zone_adjacency, before)
    exact = normalised_adjacency(other.zone_edge_index, other.zone_edge_weight.double(), 4)
    assert torch.equal(encoder.double().zone_adjacency, exact)


def test_zones_are_added_up_in_float32_under_autocast() -> None:
    network, _ = random_network(10)
    encoder = RoadNetworkEncoder(ModelConfig(road_id_dim=4, road_attr_dim=1), network)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = zones_of(encoder)
        theirs = reference_of(encoder)(encoder.zone_id_emb.weight, encoder.zone_edge_index, encoder.zone_edge_weight)
    assert mixed.dtype is theirs.dtype is torch.float32
    torch.testing.assert_close(mixed, theirs, rtol=0, atol=2e-3)
    assert not torch.equal(mixed, zones_of(encoder))  # the layers' own products really are in half precision
