"""Road and zone encoders: the network's own embeddings, the same for every trip.

Shapes: N roads, E road-graph edges, Z zones, d road width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN
from torch_geometric.utils import add_self_loops, remove_self_loops

from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig


class GATv2Layer(nn.Module):
    """One-head GATv2 layer over a fixed graph (Brody et al., 2022), with edge attributes.

    s_ij = a . LeakyReLU_0.2(W_l x_j + W_r x_i + W_e e_ji), softmax over i's in-neighbours
    and i itself, out_i = sum_j alpha_ij W_l x_j + bias. Parameters are named as in
    `torch_geometric.nn.GATv2Conv`, against which the layer is tested; the edges come
    sorted by target, so that both reductions run over segments.
    """

    def __init__(self, in_dim: int, out_dim: int, edge_dim: int) -> None:
        super().__init__()
        self.lin_l = nn.Linear(in_dim, out_dim)
        self.lin_r = nn.Linear(in_dim, out_dim)
        self.lin_edge = nn.Linear(edge_dim, out_dim, bias=False)
        self.att = nn.Parameter(torch.empty(1, 1, out_dim))
        self.bias = nn.Parameter(torch.empty(out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot weights and attention, zero biases, as the reference layer has them."""
        for linear in (self.lin_l, self.lin_r):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.lin_edge.weight)
        nn.init.xavier_uniform_(self.att)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, graph: RoadGraph) -> Tensor:
        """Maps x [N, in] to [N, out]."""
        source_x, target_x = self.lin_l(x), self.lin_r(x)
        message = source_x.index_select(0, graph.source)
        score = message + target_x.index_select(0, graph.target) + self.lin_edge(graph.attr)
        score = F.leaky_relu(score, 0.2) @ self.att.view(-1)
        weighted = (
            segment_softmax(score.float(), graph.target, len(x))[:, None] * message
        )  # float32 under autocast, too
        out: Tensor = weighted.new_zeros(target_x.shape).index_add_(0, graph.target, weighted)
        return out + self.bias


def segment_softmax(score: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of score [E] over the entries of each segment [E]."""
    top = score.new_full((num_segments,), -torch.inf).scatter_reduce(0, segment, score.detach(), "amax")
    exp = (score - top[segment]).exp()
    total = exp.new_zeros(num_segments).index_add(0, segment, exp)
    return exp / total[segment]


class RoadGraph:
    """The road graph with self-loops, sorted by target; derived once from the buffers.

    A self-loop's attribute is the mean of the attributes of the road's incoming edges, 0
    if there are none; self-loops that the graph brings along are replaced.

    Attributes:
        source, target: int64 [E + N].
        attr: float32 [E + N, 2].
    """

    def __init__(self, edge_index: Tensor, attr: Tensor, num_roads: int) -> None:
        edge_index, attr = remove_self_loops(edge_index, attr)
        edge_index, attr = add_self_loops(edge_index, attr, fill_value="mean", num_nodes=num_roads)
        order = torch.argsort(edge_index[1], stable=True)
        self.source, self.target = edge_index[0][order], edge_index[1][order]
        self.attr = attr[order]


class RoadGAT(nn.Module):
    """GATv2 layers with ReLU between them."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GATv2Layer(dim, dim, edge_dim=2) for _ in range(num_layers))

    def forward(self, x: Tensor, graph: RoadGraph) -> Tensor:
        """Maps x [N, d] to [N, d]."""
        for i, conv in enumerate(self.convs):
            x = conv(x.relu() if i else x, graph)
        return x


class RoadNetworkEncoder(nn.Module):
    """Embeds roads by id, attributes and neighbours; zones by id and the flow between them."""

    road_attr_len: Tensor
    road_attr_type: Tensor
    road_attr_lon: Tensor
    road_attr_lat: Tensor
    road_edge_index: Tensor
    intersection_attr: Tensor
    zone_edge_index: Tensor
    zone_edge_weight: Tensor

    def __init__(self, config: ModelConfig, network: RoadNetwork) -> None:
        super().__init__()
        buffers = {
            "road_attr_len": network.attr_len,
            "road_attr_type": network.attr_type,
            "road_attr_lon": network.attr_lon,
            "road_attr_lat": network.attr_lat,
            "road_edge_index": network.road_edge_index,
            "intersection_attr": network.intersection_attr,
            "zone_edge_index": network.zone_edge_index,
            "zone_edge_weight": network.zone_edge_weight,
        }
        for name, array in buffers.items():
            self.register_buffer(name, torch.tensor(array))
        dim, attr_dim = config.road_dim, config.road_attr_dim
        self.road_id_emb = nn.Embedding(network.num_roads, config.road_id_dim)
        self.len_emb = nn.Linear(1, attr_dim)
        self.type_emb = nn.Embedding(network.num_types, attr_dim)
        self.lon_emb = nn.Linear(1, attr_dim)
        self.lat_emb = nn.Linear(1, attr_dim)
        self.zone_id_emb = nn.Embedding(config.zone_embeddings or network.num_zones, dim)
        self.road_gat = RoadGAT(dim, config.num_graph_layers)
        self.zone_gcn = GCN(dim, dim, config.num_graph_layers, cached=False)
        self._graph: RoadGraph | None = None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Road embeddings [N, d] and zone embeddings [Z, d]."""
        road = torch.cat(
            [
                self.road_id_emb.weight,
                self.len_emb(self.road_attr_len[:, None]),
                self.type_emb(self.road_attr_type),
                self.lon_emb(self.road_attr_lon[:, None]),
                self.lat_emb(self.road_attr_lat[:, None]),
            ],
            dim=1,
        )
        zone = self.zone_gcn(self.zone_id_emb.weight, self.zone_edge_index, self.zone_edge_weight)
        return self.road_gat(road, self._road_graph()), zone

    def _road_graph(self) -> RoadGraph:
        if self._graph is None or self._graph.attr.device != self.intersection_attr.device:
            self._graph = RoadGraph(self.road_edge_index, self.intersection_attr, len(self.road_attr_len))
        return self._graph

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._graph = None  # the buffers change
        super()._load_from_state_dict(*args, **kwargs)
