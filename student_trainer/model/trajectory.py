"""The trip encoder: a causal transformer whose attention knows distance and time between steps.

Shapes: B trips, T steps, D = 2d width, h heads of width e = D / h.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from student_trainer.model.config import ModelConfig


class FourierTemporalEncoder(nn.Module):
    """[cos(t f) | sin(t f)] * sqrt(1 / (2 d)) with learnt frequencies f."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(1 / 10 ** torch.linspace(0, 9, dim // 2))
        self.scale = math.sqrt(1 / (2 * dim))

    def forward(self, time: Tensor) -> Tensor:
        """Maps time [B, T] to [B, T, d]."""
        phase = time[..., None] * self.freqs
        return torch.cat([phase.cos(), phase.sin()], dim=-1) * self.scale


class CosineTemporalEncoder(nn.Module):
    """cos(W t + b), the encoder of older upstream versions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.time_emb = nn.Linear(1, dim)

    def forward(self, time: Tensor) -> Tensor:
        """Maps time [B, T] to [B, T, d]."""
        embedded: Tensor = self.time_emb(time[..., None])
        return embedded.cos()


class RelativeAttention(nn.Module):
    """Causal attention with R = Linear([distance, interval]) added to keys and values per pair.

    scores = (q k^T + q R_k^T) / sqrt(e), out = P v + P R_v, R shared by the heads. R is
    linear in two scalars, so the [B, T, T, e] tensor is never built:
    q R_k^T = distance (q w_0) + interval (q w_1) + q b, and P R_v needs only the sums of P,
    P * distance and P * interval over the keys. Exact up to rounding.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)
        self.relative_position_emb_k = nn.Linear(2, dim // num_heads)
        self.relative_position_emb_v = nn.Linear(2, dim // num_heads)

    def forward(self, x: Tensor, distance: Tensor, interval: Tensor, hidden: Tensor) -> Tensor:
        """Maps x [B, T, D] to [B, T, D].

        Args:
            distance, interval: [B, 1, T, T].
            hidden: bool [B, 1, T, T], the pairs that must not attend.
        """
        b, t, d = x.shape
        q, k, v = self.c_attn(x).view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        return self._attend(q, k, v, distance, interval, hidden)

    def of_one(self, x: Tensor, own: Tensor, distance: Tensor, interval: Tensor, hidden: Tensor) -> Tensor:
        """What `forward` gives one step of each trip, [B, 1, D]; the others are only attended to.

        Args:
            x: [B, T, D]; own: [B, 1, D], its row of that step.
            distance, interval, hidden: [B, 1, 1, T], its row.
        """
        b, t, d = x.shape
        weight, bias = self.c_attn.weight, self.c_attn.bias
        q = F.linear(own, weight[:d], bias[:d]).view(b, 1, self.num_heads, d // self.num_heads).transpose(1, 2)
        kv = F.linear(x, weight[d:], bias[d:]).view(b, t, 2, self.num_heads, d // self.num_heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        return self._attend(q, k, v, distance, interval, hidden)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor, interval: Tensor, hidden: Tensor) -> Tensor:
        """[B, Q, D] of Q queries [B, h, Q, e], with the pairs' rows [B, 1, Q, T]."""
        relative_k, relative_v = self.relative_position_emb_k, self.relative_position_emb_v
        # [B, h, T, 3]: each query against distance's weight, interval's weight and the bias
        on_relative = q @ torch.cat([relative_k.weight, relative_k.bias[:, None]], dim=1)
        scores = q @ k.mT + distance * on_relative[..., :1] + interval * on_relative[..., 1:2] + on_relative[..., 2:]
        scores = (scores / math.sqrt(q.shape[-1])).float().masked_fill(hidden, -torch.inf)
        p = scores.softmax(-1).to(v.dtype)
        pair_sums = torch.stack([(p * distance).sum(-1), (p * interval).sum(-1)], dim=-1)
        out = p @ v + relative_v(pair_sums)  # P sums to 1, so the bias enters once
        projected: Tensor = self.c_proj(out.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Pre-LN transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = RelativeAttention(dim, num_heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, distance: Tensor, interval: Tensor, hidden: Tensor) -> Tensor:
        """Maps x [B, T, D] to [B, T, D]; see `RelativeAttention`."""
        attended: Tensor = x + self.attn(self.ln_1(x), distance, interval, hidden)
        fed: Tensor = self.mlp(self.ln_2(attended))
        return attended + fed

    def of_one(self, x: Tensor, step: Tensor, distance: Tensor, interval: Tensor, hidden: Tensor) -> Tensor:
        """What `forward` gives the step [B] of each trip, [B, D]."""
        trip = torch.arange(x.shape[0], device=x.device)
        pairs = (pair[trip, :, step, None] for pair in (distance, interval, hidden))
        normalised = self.ln_1(x)
        attended: Tensor = x[trip, step, None] + self.attn.of_one(normalised, normalised[trip, step, None], *pairs)
        fed: Tensor = self.mlp(self.ln_2(attended))
        return (attended + fed).squeeze(1)


class TrajectoryEncoder(nn.Module):
    """Encodes each step of a trip in the context of the steps before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.road_dim
        self.road_zone_fusion_mlp = nn.Sequential(nn.Linear(2 * dim, 64), nn.GELU(), nn.Linear(64, 1))
        encoder = FourierTemporalEncoder if config.temporal == "freqs" else CosineTemporalEncoder
        self.temporal_encoder: nn.Module = encoder(dim)
        self.blocks = [Block(2 * dim, config.num_heads) for _ in range(config.num_layers)]
        self.transformer = nn.ModuleDict({"h": nn.ModuleList(self.blocks)})
        self.checkpoint_blocks = config.checkpoint_blocks

    def forward(
        self, road: Tensor, zone: Tensor, temporal: Tensor, distance: Tensor, interval: Tensor, length: Tensor
    ) -> Tensor:
        """States [B, T, 2d] of the steps; those beyond a trip's length are meaningless.

        Args:
            road, zone: [B, T, d] embeddings of each step's road and its zone.
            temporal: [B, T]; distance, interval: [B, T, T]; length: int64 [B].
        """
        x, pairs = self._inputs(self.fuse(road, zone), temporal, distance, interval, length)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, *pairs, use_reentrant=False, preserve_rng_state=False)  # draws nothing
            else:
                x = block(x, *pairs)
        return x

    def last_states(
        self, spatial: Tensor, temporal: Tensor, distance: Tensor, interval: Tensor, length: Tensor
    ) -> Tensor:
        """What `forward` gives the last step of each trip, [B, 2d], but for rounding; `spatial` as `fuse` gives it.

        The last block computes one step of a trip, and keys and values of the others.
        """
        x, pairs = self._inputs(spatial, temporal, distance, interval, length)
        for block in self.blocks[:-1]:
            x = block(x, *pairs)
        return self.blocks[-1].of_one(x, length - 1, *pairs)

    def _inputs(
        self, spatial: Tensor, temporal: Tensor, distance: Tensor, interval: Tensor, length: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What the blocks read: [B, T, 2d], and distance, interval and which pairs are hidden [B, 1, T, T]."""
        x = torch.cat([spatial, self.temporal_encoder(temporal)], dim=-1)
        step = torch.arange(x.shape[1], device=x.device)
        hidden = (step > step[:, None]) | (step >= length[:, None, None])
        return x, (distance[:, None], interval[:, None], hidden[:, None])

    def fuse(self, road: Tensor, zone: Tensor) -> Tensor:
        """The spatial half of a step's input: embeddings of its road and its zone, [..., d]."""
        gate = torch.sigmoid(self.road_zone_fusion_mlp(torch.cat([road, zone], dim=-1)))
        return road + gate * zone
