"""Reads LM-TAD checkpoints of the public implementation without executing anything in them.

A training checkpoint is a pickle that names upstream's configuration classes. What it names is looked
at first (`shared.torch_archive`), then it is read by torch's weights-only unpickler, which calls nothing
but tensor constructors; the classes are stood in for by inert records.

Three layouts are known:

    training checkpoint   {model, model_config, dataset_config, args, optimizer, ...}
    weights-only export   {state_dict, model_config}
    bare state_dict       {name: tensor}
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import torch_archive
from shared.errors import FileFormatError
from teacher_server.lmtad.model import LMTAD, Architecture, check_shapes

WRAPPERS = frozenset({"_orig_mod", "module"})
"""Parts of a name that torch.compile and DistributedDataParallel add."""
_CAUSAL_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")
_LAYER = re.compile(r"transformer\.h\.(\d+)\.")


class Record:
    """Stands in for an upstream class: takes its state, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise FileFormatError(f"the state of a {type(self).__name__} is no dictionary")
        self.__dict__.update(state)


def _record(name: str) -> type[Record]:
    return type(name.rpartition(".")[2], (Record,), {})


_RECORDS = {
    name: _record(name)
    for name in (
        "models.LMTAD.LMTADConfig",
        "datasets.PortoConfig",
        "datasets.POLConfig",
        "argparse.Namespace",
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What an upstream file holds.

    Attributes:
        layout: which of the layouts, for people.
        tensors: LM-TAD's weights under their plain names.
        model_config: fields of upstream's LMTADConfig; empty if the file has none.
        dataset_config: fields of upstream's data set configuration; empty if the file has none.
        dataset_class: name of its class; None if the file has none.
    """

    layout: str
    tensors: dict[str, Tensor]
    model_config: dict[str, Any]
    dataset_config: dict[str, Any]
    dataset_class: str | None


def read(path: Path) -> Checkpoint:
    """Reads an upstream checkpoint.

    Raises:
        FileFormatError: the file is missing, damaged, of an old format, not an LM-TAD's, or
            names a global that no LM-TAD checkpoint needs.
    """
    torch_archive.check(path, _RECORDS.keys())
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary")
    layout, state = _find_state(path, content)
    dataset = content.get("dataset_config") if layout != "bare state_dict" else None
    return Checkpoint(
        layout=layout,
        tensors=_clean(path, state),
        model_config=_fields(content.get("model_config") if layout != "bare state_dict" else None),
        dataset_config=_fields(dataset),
        dataset_class=type(dataset).__name__ if isinstance(dataset, Record) else None,
    )


def architecture(checkpoint: Checkpoint, n_head: int | None) -> Architecture:
    """The sizes of a checkpoint, from its tensors, checked against its own configuration.

    Args:
        checkpoint: what `read` returned.
        n_head: attention heads, which no shape tells; needed without a model_config.

    Raises:
        FileFormatError: tensors are missing or have wrong shapes, or the configuration
            contradicts them or `n_head`.
    """
    config, tensors = checkpoint.model_config, checkpoint.tensors
    if "transformer.wpe.pe" in tensors or config.get("integer_poe"):
        raise FileFormatError(
            "the checkpoint uses integer_poe, which adds the code of a trip's row in the batch, not of a token's "
            "place: its answers depend on the batch and cannot be served; train without integer_poe"
        )
    inferred = _infer(tensors)
    for name, value in inferred.items():
        if _is_known(name, config.get(name)) and config[name] != value:
            raise FileFormatError(f"model_config says {name} = {config[name]!r}, but the weights say {value}")
    result = Architecture(n_head=_heads(config, n_head), **inferred)
    model = LMTAD.without_values(result, tied_head="lm_head.weight" not in tensors)
    check_shapes(model.shapes(), tensors)
    return result


def _unpickle(path: Path) -> Any:
    allowed: list[Any] = [(record, name) for name, record in _RECORDS.items()]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on its own storage classes
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileFormatError:
        raise
    except Exception as error:  # an untrusted file can make the parser fail in any way
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{path} is not a readable checkpoint: {reason or type(error).__name__}") from None


def _find_state(path: Path, content: dict[Any, Any]) -> tuple[str, dict[str, Any]]:
    for key, layout in (("model", "training checkpoint"), ("state_dict", "weights-only export")):
        if isinstance(content.get(key), dict):
            return layout, content[key]
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "bare state_dict", content
    raise FileFormatError(
        f"{path} is not an LM-TAD checkpoint: expected 'model', 'state_dict' or weights alone, "
        f"found {', '.join(map(repr, list(content)[:6]))}"
    )


def _clean(path: Path, state: dict[Any, Any]) -> dict[str, Tensor]:
    """Plain names; without a tied head's copy and the causal masks that torch < 2 stored."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise FileFormatError(f"{path}: {key!r} is not a weight")
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in tensors:
            raise FileFormatError(f"{path}: {name} occurs twice")
        if not _CAUSAL_MASK.fullmatch(name):
            tensors[name] = _as_stored(path, name, value)
    head, embedding = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    if head is not None and embedding is not None and torch.equal(head, embedding):
        del tensors["lm_head.weight"]
    return tensors


def _as_stored(path: Path, name: str, value: Tensor) -> Tensor:
    """float32 and float16 as they are; bfloat16, which numpy lacks, and float64 as float32."""
    if value.layout != torch.strided or not value.is_floating_point():
        raise FileFormatError(f"{path}: {name} is not a dense floating-point tensor but {value.dtype}, so no LM-TAD's")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # 44 bits of shape over 1 of data
        raise FileFormatError(f"{path}: {name} claims the shape {list(value.shape)}, larger than its data")
    if not bool(torch.isfinite(value).all()):
        raise FileFormatError(f"{path}: {name} has values that are not finite")
    kept = value.dtype in (torch.float32, torch.float16)
    return (value if kept else value.to(torch.float32)).detach().contiguous()


def _infer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        vocab_size, n_embd = shapes["transformer.wte.weight"]
        block_size, _ = shapes["transformer.wpe.weight"]
    except (KeyError, ValueError):
        raise FileFormatError(
            "not an LM-TAD checkpoint: it lacks transformer.wte.weight or transformer.wpe.weight"
        ) from None
    layers = [int(match[1]) for name in tensors if (match := _LAYER.match(name))]
    return {
        "n_layer": max(layers, default=-1) + 1,
        "n_embd": n_embd,
        "vocab_size": vocab_size,
        "block_size": block_size,
        "bias": "transformer.ln_f.bias" in tensors,
    }


def _heads(config: Mapping[str, Any], given: int | None) -> int:
    stored: Any = config.get("n_head")
    if not _is_known("n_head", stored):
        if given is None:
            raise FileFormatError("the checkpoint does not say how many attention heads it has; add n_head=N")
        return given
    if given not in (None, stored):
        raise FileFormatError(f"model_config says n_head = {stored}, but n_head={given} was given")
    return int(stored)


def _is_known(name: str, value: Any) -> bool:
    """Upstream's exporter writes None or -1 for what it does not know."""
    return isinstance(value, bool) if name == "bias" else type(value) is int and value > 0


def _fields(config: Any) -> dict[str, Any]:
    if isinstance(config, Record):
        return dict(vars(config))
    return dict(config) if isinstance(config, dict) else {}
