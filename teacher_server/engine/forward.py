"""The model's states in one of the fixed shapes, with the same kernel of attention whatever the shape."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teacher_server.engine.shapes import Group, Kind
from teacher_server.lmtad.model import LMTAD

BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The first one that knows the dtype and the size of the heads, which do not depend on a tile's shape. It computes each
query block on its own; flash attention splits long keys by how many queries there are."""


def states_of(group: Group, network: LMTAD, inputs: Tensor, index: Tensor) -> Tensor:
    """Final hidden states of a tile.

    Args:
        group: of the tile.
        network: the model.
        inputs: int32 [size, columns], as in `layouts.Tile`.
        index: int32 [n], likewise.

    Returns:
        [n, D].
    """
    with _one_attention(inputs.device):
        if group.kind is Kind.TREE:
            return network.hidden_of_tree(inputs[:, 0], inputs[:, 1], inputs[:, 2:], index)
        if group.kind is Kind.ENDS:
            return network.hidden_at(inputs, index)
        return network.hidden(inputs).flatten(0, 1)[index]


def _one_attention(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(BACKENDS) if device.type == "cuda" else contextlib.nullcontext()
