"""HOSER as its formulas read: all roads embedded in every step, relative keys and values of all pairs, padding.

Parameters and buffers are named as the student's, whose `state_dict` loads. Nothing is left out and nothing is slowed
down on purpose: array operations over the whole batch, torch-geometric's own graph layers.

Shapes: N roads, Z zones, d road width; B trips, T steps, C most candidates, D = 2d, h heads of width e = D / h.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN, GATv2Conv

from benchmarks.straightforward.collate import PaddedBatch
from student_trainer.data.network import RoadNetwork
from student_trainer.model.config import ModelConfig
from student_trainer.model.navigator import Navigator
from student_trainer.model.time_scale import TimeScale
from student_trainer.model.trajectory import CosineTemporalEncoder, FourierTemporalEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedTensors:
    """A `PaddedBatch` on the device; fields are the same."""

    length: Tensor
    destination: Tensor
    road: Tensor
    temporal: Tensor
    seconds: Tensor
    label: Tensor
    distance: Tensor
    interval: Tensor
    candidate_length: Tensor
    candidate_road: Tensor
    candidate_distance: Tensor
    candidate_angle: Tensor

    @classmethod
    def of(
        cls, batch: PaddedBatch, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> PaddedTensors:
        """The batch with its real numbers in `dtype`, on a device."""
        arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(cls)}
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return cls(**{name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()})

    def to(self, device: torch.device) -> PaddedTensors:
        """The batch on a device."""
        return PaddedTensors(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})


class StraightforwardHOSER(nn.Module):
    """The whole model: candidates' logits and travel times."""

    road2zone: Tensor

    def __init__(self, config: ModelConfig, network: RoadNetwork) -> None:
        super().__init__()
        self.register_buffer("road2zone", torch.from_numpy(network.road_zone.copy()))
        self.road_network_encoder = _NetworkEncoder(config, network)
        self.trajectory_encoder = _TripEncoder(config)
        self.navigator = Navigator(config)  # for its parameters; what it computes is written out below

    def forward(self, batch: PaddedTensors) -> tuple[Tensor, Tensor]:
        """Logits and standardised log1p seconds of all candidates, [B, T, C] each; meaningless beyond them."""
        roads, zones = self.road_network_encoder()
        road, zone = roads[batch.road], zones[self.road2zone[batch.road]]
        state = self.trajectory_encoder(road, zone, batch)
        candidate = roads[batch.candidate_road]
        destination = zones[self.road2zone[batch.destination]][:, None].expand(-1, state.shape[1], -1)
        return self._logits(state, destination, candidate, batch), self._times(state, candidate)

    def _logits(self, state: Tensor, destination_zone: Tensor, candidate: Tensor, batch: PaddedTensors) -> Tensor:
        navigator = self.navigator
        query = navigator.q_proj(torch.cat([state, destination_zone], dim=-1))
        distance = navigator.metric_distance_proj(batch.candidate_distance[..., None])
        angle = navigator.metric_angle_proj(batch.candidate_angle[..., None])
        key = navigator.k_proj(torch.cat([candidate, distance, angle], dim=-1))
        logits: Tensor = navigator.v_proj(torch.tanh(query[:, :, None] + key))
        return logits.squeeze(-1)

    def _times(self, state: Tensor, candidate: Tensor) -> Tensor:
        navigator = self.navigator
        of_state = navigator.time_estimator_linear_1(state)[:, :, None].expand(-1, -1, candidate.shape[2], -1)
        features = torch.cat([of_state, navigator.time_estimator_linear_2(candidate)], dim=-1)
        times: Tensor = navigator.time_estimator_linear_3(F.gelu(features))
        return times.squeeze(-1)


def losses(logits: Tensor, times: Tensor, batch: PaddedTensors, scale: TimeScale) -> tuple[Tensor, Tensor]:
    """Means over the labelled steps: -log p(next road), and the relative error of log1p seconds."""
    slot = torch.arange(logits.shape[2], device=logits.device)
    logits = logits.masked_fill(slot >= batch.candidate_length[..., None], -torch.inf)
    labelled = batch.label >= 0  # a step beyond its trip has no label
    next_road = F.cross_entropy(logits[labelled], batch.label[labelled])
    of_label = times.gather(2, batch.label.clamp(min=0)[..., None]).squeeze(-1)
    x = torch.log1p(batch.seconds)
    error = (of_label * scale.sigma + scale.mu - x).abs() / x.clamp(min=1)
    return next_road, error[labelled].mean()


class _NetworkEncoder(nn.Module):
    """Graph attention over all roads, graph convolution over all zones."""

    road_attr_len: Tensor
    road_attr_type: Tensor
    road_attr_lon: Tensor
    road_attr_lat: Tensor

    def __init__(self, config: ModelConfig, network: RoadNetwork) -> None:
        super().__init__()
        for name in ("len", "type", "lon", "lat"):
            self.register_buffer(f"road_attr_{name}", torch.tensor(getattr(network, f"attr_{name}")))
        for name in ("road_edge_index", "intersection_attr", "zone_edge_index", "zone_edge_weight"):
            self.register_buffer(name, torch.tensor(getattr(network, name)))
        dim, attr_dim = config.road_dim, config.road_attr_dim
        self.road_id_emb = nn.Embedding(network.num_roads, config.road_id_dim)
        self.len_emb, self.lon_emb, self.lat_emb = (nn.Linear(1, attr_dim) for _ in range(3))
        self.type_emb = nn.Embedding(network.num_types, attr_dim)
        self.zone_id_emb = nn.Embedding(config.zone_embeddings or network.num_zones, dim)
        self.layers = [GATv2Conv(dim, dim, heads=1, edge_dim=2) for _ in range(config.num_graph_layers)]
        self.road_gat = nn.ModuleDict({"convs": nn.ModuleList(self.layers)})
        self.zone_gcn = GCN(dim, dim, config.num_graph_layers)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Roads [N, d] and zones [Z, d]."""
        attributes = [
            self.len_emb(self.road_attr_len[:, None]),
            self.type_emb(self.road_attr_type),
            self.lon_emb(self.road_attr_lon[:, None]),
            self.lat_emb(self.road_attr_lat[:, None]),
        ]
        road = torch.cat([self.road_id_emb.weight, *attributes], dim=-1)
        for layer, conv in enumerate(self.layers):
            road = conv(road.relu() if layer else road, self.road_edge_index, self.intersection_attr)
        return road, self.zone_gcn(self.zone_id_emb.weight, self.zone_edge_index, self.zone_edge_weight)


class _TripEncoder(nn.Module):
    """Causal transformer with a relative key and value for every pair of steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.road_dim
        self.road_zone_fusion_mlp = nn.Sequential(nn.Linear(2 * dim, 64), nn.GELU(), nn.Linear(64, 1))
        temporal = FourierTemporalEncoder if config.temporal == "freqs" else CosineTemporalEncoder
        self.temporal_encoder: nn.Module = temporal(dim)
        self.blocks = [_Block(2 * dim, config.num_heads) for _ in range(config.num_layers)]
        self.transformer = nn.ModuleDict({"h": nn.ModuleList(self.blocks)})

    def forward(self, road: Tensor, zone: Tensor, batch: PaddedTensors) -> Tensor:
        """States [B, T, 2d]."""
        gate = torch.sigmoid(self.road_zone_fusion_mlp(torch.cat([road, zone], dim=-1)))
        x = torch.cat([road + gate * zone, self.temporal_encoder(batch.temporal)], dim=-1)
        step = torch.arange(x.shape[1], device=x.device)
        hidden = (step > step[:, None]) | (step >= batch.length[:, None, None])
        pairs = torch.stack([batch.distance, batch.interval], dim=-1)
        for block in self.blocks:
            x = block(x, pairs, hidden)
        return x


class _Attention(nn.Module):
    """scores = (q k^T + q R_k^T) / sqrt(e), out = P v + P R_v, R_k and R_v [B, T, T, e]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_emb_k = nn.Linear(2, dim // num_heads)
        self.relative_position_emb_v = nn.Linear(2, dim // num_heads)

    def forward(self, x: Tensor, pairs: Tensor, hidden: Tensor) -> Tensor:
        """Maps x [B, T, D] to [B, T, D], given pairs [B, T, T, 2] and hidden [B, T, T]."""
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.num_heads, -1).transpose(1, 2) for part in self.c_attn(x).split(d, dim=-1))
        relative_k, relative_v = self.relative_position_emb_k(pairs), self.relative_position_emb_v(pairs)
        scores = q @ k.mT + torch.einsum("bhie,bije->bhij", q, relative_k)
        p = (scores / math.sqrt(q.shape[-1])).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        out = p @ v + torch.einsum("bhij,bije->bhie", p, relative_v)
        projected: Tensor = self.c_proj(out.transpose(1, 2).reshape(b, t, d))
        return projected


class _Block(nn.Module):
    """Pre-LN transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, pairs: Tensor, hidden: Tensor) -> Tensor:
        """Maps x [B, T, D] to [B, T, D]."""
        x = x + self.attn(self.ln_1(x), pairs, hidden)
        fed: Tensor = x + self.mlp(self.ln_2(x))
        return fed
