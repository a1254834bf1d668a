"""Weights of public HOSER <-> ours.

The names agree; what differs is the causal-mask buffer `attn.bias` of every block, which
upstream stores ([1, 1, L, L] float32) and we neither need nor keep, the prefix that a
compiled model adds, and the settings, which a bare `state_dict` reveals by its shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shared.errors import CompatibilityError, FileFormatError
from student_trainer.model import fitting
from student_trainer.model.config import ModelConfig
from student_trainer.model.hoser import HOSER

_MASK = re.compile(r"trajectory_encoder\.transformer\.h\.(\d+)\.attn\.bias")
_COMPILED = "_orig_mod."
_GRAPH_BUFFERS = ("road_edge_index", "intersection_attr", "zone_edge_index", "zone_edge_weight")
"""Edges may be stored in another order, and zones have as many as trips crossed."""


def normalise(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under their plain names, without masks."""
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in plain.items() if not _MASK.fullmatch(name)}


def infer_config(state_dict: Mapping[str, Tensor]) -> ModelConfig:
    """The architecture that a `state_dict` (with or without masks) belongs to.

    Raises:
        FileFormatError: names a weight that is missing.
    """
    try:
        block = "trajectory_encoder.transformer.h.0.attn"
        width = state_dict[f"{block}.c_proj.weight"].shape[0]
        masks = [tensor.shape[-1] for name, tensor in state_dict.items() if _MASK.fullmatch(name)]
        temporal = "freqs" if "trajectory_encoder.temporal_encoder.freqs" in state_dict else "time_emb"
        values: dict[str, Any] = {
            "road_id_dim": state_dict["road_network_encoder.road_id_emb.weight"].shape[1],
            "road_attr_dim": state_dict["road_network_encoder.len_emb.weight"].shape[0],
            "num_heads": width // state_dict[f"{block}.relative_position_emb_k.weight"].shape[0],
            "num_layers": _count(state_dict, r"trajectory_encoder\.transformer\.h\.(\d+)\."),
            "num_graph_layers": _count(state_dict, r"road_network_encoder\.road_gat\.convs\.(\d+)\."),
            "zone_embeddings": state_dict["road_network_encoder.zone_id_emb.weight"].shape[0],
            "temporal": temporal,
        }
    except KeyError as error:
        raise FileFormatError(f"not HOSER weights: {error.args[0]} is missing") from None
    if masks:
        values["mask_size"] = masks[0]
    return ModelConfig(**values)


def load_into(model: HOSER, state_dict: Mapping[str, Tensor]) -> None:
    """Loads weights, upstream's or ours, buffers included: the graphs are those of the weights.

    Raises:
        CompatibilityError: the weights are of another network or architecture.
    """
    weights = normalise(state_dict)
    roads = len(weights.get("road2zone", ()))
    if roads != len(model.road2zone):
        raise CompatibilityError(f"the weights are for {roads} roads, the store has {len(model.road2zone)}")
    for name in _GRAPH_BUFFERS:
        if (graph := weights.get(f"road_network_encoder.{name}")) is not None:
            setattr(model.road_network_encoder, name, torch.empty_like(graph, device=model.road2zone.device))
    fitting.load(model, weights)


def export(model: HOSER) -> dict[str, Tensor]:
    """The weights as upstream stores them, causal masks included."""
    size = model.config.mask_size
    mask = torch.ones(size, size).tril().view(1, 1, size, size)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for layer in range(model.config.num_layers):
        weights[f"trajectory_encoder.transformer.h.{layer}.attn.bias"] = mask
    return weights


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state_dict if (match := re.match(pattern, name))})
