"""Road and zone encoders: the network's own embeddings, the same for every trip.

Shapes: N roads, E road-graph edges, Z zones, d road width, M roads of a layer's input or output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from student_trainer.data.network import RoadNetwork
from student_trainer.model import device as devices
from student_trainer.model.config import ModelConfig
from student_trainer.model.graph_attention import attend
from student_trainer.model.road_graph import Field, Hop, RoadGraph


class GATv2Layer(nn.Module):
    """One-head GATv2 layer over a fixed graph (Brody et al., 2022), with edge attributes.

    s_ij = a . LeakyReLU_0.2(W_l x_j + W_r x_i + W_e e_ji), softmax over i's in-neighbours
    and i itself, out_i = sum_j alpha_ij W_l x_j + bias. Parameters are named as in
    `torch_geometric.nn.GATv2Conv`, against which the layer is tested.
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

    def forward(self, x: Tensor, hop: Hop) -> Tensor:
        """Maps x [M_in, in] to [M_out, out]."""
        targets = x if hop.own is None else x.index_select(0, hop.own)
        left, right = self.lin_l(x), self.lin_r(targets)
        return attend(left, right, self.lin_edge.weight, self.att.view(-1), hop) + self.bias


class RoadGAT(nn.Module):
    """GATv2 layers with ReLU between them."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GATv2Layer(dim, dim, edge_dim=2) for _ in range(num_layers))

    def forward(self, x: Tensor, hops: Sequence[Hop]) -> Tensor:
        """Maps the first hop's inputs [M_in, d] to the last one's targets [M_out, d]."""
        for i, (conv, hop) in enumerate(zip(self.convs, hops, strict=True)):
            x = conv(x.relu() if i else x, hop)
        return x


class GCNLayer(nn.Module):
    """One graph convolution over a fixed graph (Kipf and Welling, 2017): out = A_norm x W^T + bias.

    Parameters are named and drawn as in `torch_geometric.nn.GCNConv`, against which the layer is tested. It is not that
    class, because importing its package takes longer than all else that a command imports.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.lin.weight)

    def forward(self, x: Tensor, flow: Callable[[Tensor], Tensor]) -> Tensor:
        """Maps x [Z, d] to [Z, d]; `flow` multiplies by A_norm, see `normalised_adjacency`."""
        return flow(self.lin(x)) + self.bias


class ZoneGCN(nn.Module):
    """Graph convolutions with ReLU between them."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GCNLayer(dim) for _ in range(num_layers))

    def forward(self, x: Tensor, flow: Callable[[Tensor], Tensor]) -> Tensor:
        """Maps x [Z, d] to [Z, d]; `flow` as in `GCNLayer`."""
        for i, conv in enumerate(self.convs):
            x = conv(x.relu() if i else x, flow)
        return x


def normalised_adjacency(edge_index: Tensor, weight: Tensor, num_zones: int) -> Tensor:
    """What a graph convolution multiplies by: D^-1/2 (A + I) D^-1/2, [Z, Z], row: target (Kipf and Welling, 2017).

    As `torch_geometric` normalises: a zone that has a self-loop keeps its weight, another gets one of weight 1; D sums
    the weights of the edges into a zone. Needs no look at the values, so that an accelerator is not waited for.

    Args:
        edge_index: int64 [2, E], source and target; edges that are repeated add up, of self-loops one counts.
        weight: [E].
        num_zones: Z.
    """
    source, target = edge_index
    is_loop = source == target
    loops = weight.new_ones(num_zones + 1).index_put((torch.where(is_loop, source, num_zones),), weight)[:-1]
    flow = torch.where(is_loop, torch.zeros_like(weight), weight)
    adjacency = weight.new_zeros(num_zones, num_zones).index_put((target, source), flow, accumulate=True)
    adjacency = adjacency + torch.diag(loops)
    scale = adjacency.sum(1).pow(-0.5)
    scale = scale.masked_fill(scale == torch.inf, 0)
    return scale[:, None] * adjacency * scale


class RoadNetworkEncoder(nn.Module):
    """Embeds roads by id, attributes and neighbours; zones by id and the flow between them.

    Zones are few, so the graph convolution is a product with one matrix, made once for a device and dtype: it has the
    same bits in every run, which sums over edges have not on an accelerator.
    """

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
        self.zone_gcn = ZoneGCN(dim, config.num_graph_layers)
        self._num_layers = config.num_graph_layers
        self._graph: RoadGraph | None = None
        self._adjacency: Tensor | None = None

    def forward(self, field: Field) -> tuple[Tensor, Tensor]:
        """Embeddings of the field's roads [M, d] and of all zones [Z, d]."""
        ids, attributes = self.road_id_emb.weight, [self.road_attr_len, self.road_attr_lon, self.road_attr_lat]
        kind = self.road_attr_type
        if (roads := field.inputs) is not None:
            ids, kind = ids.index_select(0, roads), kind[roads]
            attributes = [attribute[roads] for attribute in attributes]
        length, lon, lat = (attribute[:, None] for attribute in attributes)
        parts = [ids, self.len_emb(length), self.type_emb(kind), self.lon_emb(lon), self.lat_emb(lat)]
        road = torch.cat(parts, dim=1)
        return self.road_gat(road, field.hops), self.zone_gcn(self.zone_id_emb.weight, self._flow)

    def _flow(self, zone: Tensor) -> Tensor:
        """What flows into each zone, [Z, d]; not in half precision, under autocast, too."""
        with devices.autocast(zone.device, None):
            return self.zone_adjacency @ zone.to(self.zone_adjacency.dtype)

    @property
    def zone_adjacency(self) -> Tensor:
        """The matrix of the graph that the buffers hold, [Z, Z], derived once on their device."""
        if self._adjacency is None:
            with torch.inference_mode(False), torch.no_grad():  # for training, too, whoever asks first
                edges = (self.zone_edge_index, self.zone_edge_weight)
                self._adjacency = normalised_adjacency(*edges, self.zone_id_emb.num_embeddings)
        return self._adjacency

    @property
    def graph(self) -> RoadGraph:
        """The road graph that the buffers hold, derived once."""
        if self._graph is None:
            attributes = (self.road_edge_index, self.intersection_attr)
            self._graph = RoadGraph(*attributes, len(self.road_attr_len), self._num_layers)
        return self._graph

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._graph = self._adjacency = None  # the buffers change
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> RoadNetworkEncoder:
        self._adjacency = None  # on another device or in another dtype it is made anew
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self
