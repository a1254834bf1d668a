"""The trip encoder's algebra against the formulas written out."""

from __future__ import annotations

import math

import torch

from student_trainer.model.config import ModelConfig
from student_trainer.model.trajectory import RelativeAttention, TrajectoryEncoder


def by_definition(layer: RelativeAttention, x: torch.Tensor, pairs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Attention with the [B, T, T, e] tensors of relative keys and values."""
    d = x.shape[-1]
    e = d // layer.num_heads
    relative_k, relative_v = layer.relative_position_emb_k(pairs), layer.relative_position_emb_v(pairs)
    q, k, v = layer.c_attn(x).split(d, dim=-1)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * e, (head + 1) * e)
        q_h, k_h, v_h = q[..., part], k[..., part], v[..., part]
        scores = torch.einsum("bie,bje->bij", q_h, k_h) + torch.einsum("bie,bije->bij", q_h, relative_k)
        p = (scores / math.sqrt(e)).masked_fill(hidden, -math.inf).softmax(-1)
        heads.append(torch.einsum("bij,bje->bie", p, v_h) + torch.einsum("bij,bije->bie", p, relative_v))
    return layer.c_proj(torch.cat(heads, dim=-1))


def test_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    layer = RelativeAttention(12, num_heads=3)
    x = torch.randn(2, 7, 12, requires_grad=True)
    pairs = torch.rand(2, 7, 7, 2)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1).expand(2, 7, 7)
    out = layer(x, pairs[:, None, ..., 0], pairs[:, None, ..., 1], hidden[:, None])
    expected = by_definition(layer, x, pairs, hidden)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
    expected_grads = torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()])
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-5)


def encode(encoder: TrajectoryEncoder, length: int, width: int, seed: int = 0) -> torch.Tensor:
    """States of one random trip of `length` steps, padded to `width` with arbitrary values."""
    generator = torch.Generator().manual_seed(seed)
    first = encoder.road_zone_fusion_mlp[0]
    assert isinstance(first, torch.nn.Linear)
    dim = first.in_features // 2
    trip = [torch.randn(1, length, dim, generator=generator) for _ in range(2)]
    time = torch.rand(1, length, generator=generator)
    pairs = [torch.rand(1, length, length, generator=generator) for _ in range(2)]
    grow = width - length
    padded = [torch.nn.functional.pad(v, (0, 0, 0, grow), value=9.0) for v in trip]
    padded_pairs = [torch.nn.functional.pad(v, (0, grow, 0, grow), value=9.0) for v in pairs]
    time = torch.nn.functional.pad(time, (0, grow), value=9.0)
    states: torch.Tensor = encoder(*padded, time, *padded_pairs, torch.tensor([length]))
    return states[:, :length]


def test_padding_does_not_leak() -> None:
    torch.manual_seed(0)
    encoder = TrajectoryEncoder(ModelConfig(road_id_dim=8, road_attr_dim=2))
    torch.testing.assert_close(encode(encoder, 5, 5), encode(encoder, 5, 9), rtol=1e-5, atol=1e-6)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    results = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        encoder = TrajectoryEncoder(ModelConfig(road_id_dim=8, road_attr_dim=2, checkpoint_blocks=checkpoint_blocks))
        encode(encoder, 6, 6).square().sum().backward()
        results.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_checkpointing_keeps_fewer_activations() -> None:
    saved = []
    for checkpoint_blocks in (False, True):
        encoder = TrajectoryEncoder(ModelConfig(road_id_dim=8, road_attr_dim=2, checkpoint_blocks=checkpoint_blocks))
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            encode(encoder, 20, 20)
        saved.append(sum(kept))
    assert saved[1] < saved[0] / 2
