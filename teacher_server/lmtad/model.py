"""LM-TAD: a GPT-2 style causal transformer over cells. Architecture only; nothing about serving.

Parameter names are those of the public implementation, so that weights load in both directions:
`transformer.{wte,wpe,h.<i>.{ln_1,attn.{c_attn,c_proj},ln_2,mlp.{c_fc,c_proj}},ln_f}` and `lm_head`.

Shapes: B sequences, T tokens (SOT first), D width of the residual stream, H heads, V vocabulary; M rows of
any sequences, S of them scored.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from shared import teacher_file
from shared.errors import FileFormatError
from shared.teacher_file import TeacherHeader, Weights

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02
PIECE_VALUES = 1 << 19
"""Values that attention gathers at once on a CPU: more would not stay in its cache, and memory of that size comes
afresh from the system every time. Changes no bits."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries [S, H, D / H] over keys and values [M, D], of which each sees rows that the function knows:
[S, D]."""


class AttendTo(Protocol):
    """`Attend` with the rows."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, place: Tensor) -> Tensor:
        """With the rows that may be seen, int [S, T], and, int [S], the place of the last that is."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shapes and the arithmetic of an LM-TAD depend on.

    Attributes:
        n_layer: transformer blocks.
        n_head: attention heads a block; divides n_embd.
        n_embd: D.
        block_size: longest sequence with SOT, tokens.
        vocab_size: V, special tokens included.
        bias: whether linear layers and layer norms have biases.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        bias = sizes.pop("bias")
        if not isinstance(bias, bool) or not all(type(size) is int and size > 0 for size in sizes.values()):
            raise FileFormatError(f"not an LM-TAD architecture: {sizes} with bias {bias!r}; the sizes must be positive")
        if self.n_embd % self.n_head:
            raise FileFormatError(f"not an LM-TAD architecture: n_embd {self.n_embd} is no multiple of {self.n_head=}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a teacher file's header stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; raises `FileFormatError` if values are missing, unknown or out of range."""
        try:
            return cls(**values)
        except TypeError as error:
            raise FileFormatError(f"not an LM-TAD architecture: {error}") from None


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        width = architecture.n_embd
        self.n_head = architecture.n_head
        self.dropout = dropout
        self.c_attn = nn.Linear(width, 3 * width, bias=architecture.bias)
        self.c_proj = nn.Linear(width, width, bias=architecture.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, time, width = x.shape
        qkv = self.c_attn(x).view(batch, time, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        y = self.c_proj(y.transpose(1, 2).reshape(batch, time, width))
        return functional.dropout(y, dropout)

    def gathered(self, x: Tensor, scored: Tensor | None, attend: Attend) -> Tensor:
        """Attention of some of the rows, each over rows of its own choice; no dropout.

        Args:
            x: [M, D], what keys and values are made of.
            scored: int [S], rows that attend; none: all.
            attend: how, and to which rows.

        Returns:
            [S, D].
        """
        width, heads = x.shape[1], (self.n_head, x.shape[1] // self.n_head)
        if scored is None:
            query, key, value = torch.split(self.c_attn(x), width, -1)
        else:
            weight, bias = self.c_attn.weight, self.c_attn.bias
            query = functional.linear(x[scored], weight[:width], None if bias is None else bias[:width])
            others = functional.linear(x, weight[width:], None if bias is None else bias[width:])
            key, value = torch.split(others, width, -1)
        attended: Tensor = self.c_proj(attend(query.view(-1, *heads), key, value))
        return attended


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        width = architecture.n_embd
        self.dropout = dropout
        self.c_fc = nn.Linear(width, 4 * width, bias=architecture.bias)
        self.c_proj = nn.Linear(4 * width, width, bias=architecture.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y = self.c_proj(functional.gelu(self.c_fc(x)))
        return functional.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        self.ln_1 = _layer_norm(architecture)
        self.attn = Attention(architecture, dropout)
        self.ln_2 = _layer_norm(architecture)
        self.mlp = MLP(architecture, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y

    def gathered(self, x: Tensor, scored: Tensor | None, attend: Attend) -> Tensor:
        """[M, D] -> [S, D]; arguments as in `Attention.gathered`."""
        attended = self.attn.gathered(self.ln_1(x), scored, attend)
        x = attended + (x if scored is None else x[scored])
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class Transformer(nn.Module):
    """Embeddings, blocks and the last layer norm."""

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.wte = nn.Embedding(architecture.vocab_size, architecture.n_embd)
        self.wpe = nn.Embedding(architecture.block_size, architecture.n_embd)
        self.h = nn.ModuleList([Block(architecture, dropout) for _ in range(architecture.n_layer)])
        self.ln_f = _layer_norm(architecture)

    @property
    def blocks(self) -> list[Block]:
        """The blocks with their type."""
        return cast(list[Block], list(self.h))

    def forward(self, tokens: Tensor) -> Tensor:
        """int [B, T] -> [B, T, D]."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        normed: Tensor = self.ln_f(x)
        return normed


class LMTAD(nn.Module):
    """The language model. Freshly made, its weights are GPT-2's initialisation.

    Attributes:
        attend_to: computes the attention of trees and of scored places, in place of `attend_by_gathering`.
    """

    def __init__(self, architecture: Architecture, dropout: float = 0.0, tied_head: bool = True) -> None:
        """Builds the model.

        Args:
            architecture: sizes.
            dropout: of embeddings, attention and residuals, while training.
            tied_head: whether `lm_head` shares the weight of the token embedding, as in GPT-2.
        """
        super().__init__()
        self.architecture = architecture
        self.transformer = Transformer(architecture, dropout)
        self.lm_head = nn.Linear(architecture.n_embd, architecture.vocab_size, bias=False)
        self.tied_head = tied_head
        self.attend_to: AttendTo | None = None
        self._tie()
        self._initialise()

    @classmethod
    def without_values(cls, architecture: Architecture, tied_head: bool) -> LMTAD:
        """A model on the meta device: names and shapes of its weights."""
        with torch.device("meta"), _Uninitialised():
            return cls(architecture, tied_head=tied_head)

    @classmethod
    def from_weights(cls, architecture: Architecture, weights: Weights) -> LMTAD:
        """A model for inference with the given weights, in their dtype; without `lm_head.weight` the head is tied.

        Raises:
            FileFormatError: names or shapes are not those of the architecture.
        """
        model = cls.without_values(architecture, tied_head="lm_head.weight" not in weights)
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        check_shapes(model.shapes(), tensors)
        if model.tied_head:
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
        model.load_state_dict(tensors, assign=True)
        model._tie()
        return model.eval().requires_grad_(False)

    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every stored weight; a tied head is not stored."""
        return {name: tensor.shape for name, tensor in self.named_parameters()}

    def weights(self) -> Weights:
        """The weights to store, on the CPU; inverse of `from_weights`."""
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in self.named_parameters()}

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states: tokens int [B, T], T <= block_size -> [B, T, D] after the last layer norm."""
        hidden: Tensor = self.transformer(tokens)
        return hidden

    def hidden_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """`hidden` at some places only, which saves most of the last block; for inference.

        Args:
            tokens: int [B, T].
            places: int [S], among the B * T.

        Returns:
            [S, D].
        """
        parts, width = self.transformer, tokens.shape[1]
        x = parts.wte(tokens) + parts.wpe.weight[:width]
        *blocks, last = parts.blocks
        for block in blocks:
            x = block(x)
        place = places % width
        seen = (places - place)[:, None] + torch.arange(width, device=tokens.device)
        hidden: Tensor = parts.ln_f(last.gathered(x.flatten(0, 1), places, self._attend(seen, place)))
        return hidden

    def hidden_of_tree(self, tokens: Tensor, depth: Tensor, ancestors: Tensor, scored: Tensor) -> Tensor:
        """Final hidden states of a tree of contexts, in which equal prefixes are one node; for inference.

        Args:
            tokens: int [M].
            depth: int [M], place in the context, 0 for SOT.
            ancestors: int [M, T], node at each place up to the node's own; any node beyond.
            scored: int [S], nodes whose states are wanted.

        Returns:
            [S, D].
        """
        parts = self.transformer
        x = parts.wte(tokens) + parts.wpe(depth)
        *blocks, last = parts.blocks
        attend = self._attend(ancestors, depth)
        for block in blocks:
            x = block.gathered(x, None, attend)
        attend = self._attend(ancestors[scored], depth[scored])
        hidden: Tensor = parts.ln_f(last.gathered(x, scored, attend))
        return hidden

    def shallow(self, n_layer: int) -> LMTAD:
        """The model of the first blocks; it shares the weights."""
        model = LMTAD.without_values(dataclasses.replace(self.architecture, n_layer=n_layer), self.tied_head)
        mine = self.state_dict()
        model.load_state_dict({name: mine[name] for name in model.state_dict()}, assign=True)
        model.attend_to = self.attend_to
        return model.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the whole vocabulary at every position: tokens int [B, T] -> [B, T, V]."""
        logits: Tensor = self.lm_head(self.hidden(tokens))
        return logits

    def _attend(self, seen: Tensor, place: Tensor) -> Attend:
        """Attention to these rows up to the place."""
        if self.attend_to is not None:
            return functools.partial(self.attend_to, seen=seen, place=place)
        return functools.partial(attend_by_gathering, seen=seen, mask=future_of(place, seen.shape[1]))

    def _tie(self) -> None:
        if self.tied_head:
            self.lm_head.weight = self.transformer.wte.weight

    def _initialise(self) -> None:
        residual_std = INIT_STD / math.sqrt(2 * self.architecture.n_layer)  # 2 n_layer additions keep unit variance
        for name, tensor in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(tensor)
            elif tensor.dim() == 2:
                nn.init.normal_(tensor, std=residual_std if name.endswith("c_proj.weight") else INIT_STD)


class _Uninitialised(TorchFunctionMode):
    """Leaves out `torch.nn.init`: random numbers on the meta device import torch's compiler, for over a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load(header: TeacherHeader, weights: Weights) -> LMTAD:
    """The model of a teacher file.

    Raises:
        FileFormatError: it is of another model, or architecture, vocabulary and weights do not fit together.
    """
    if header.model != teacher_file.LMTAD:
        raise FileFormatError(f"the teacher file holds a {header.model}, no LM-TAD")
    architecture = Architecture.from_dict(header.architecture)
    if architecture.vocab_size != header.tokeniser.vocabulary.size:
        raise FileFormatError(
            f"the teacher file's vocabulary has {header.tokeniser.vocabulary.size} tokens, "
            f"but its weights are for {architecture.vocab_size}"
        )
    return LMTAD.from_weights(architecture, weights)


def check_shapes(expected: dict[str, torch.Size], tensors: dict[str, Tensor]) -> None:
    """Raises `FileFormatError` naming the first weights that are missing, unexpected or of another shape."""
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise FileFormatError(
            f"the weights are not an LM-TAD's: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise FileFormatError(f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}")


def attend_by_gathering(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Attention in torch's operations, sums and softmax in float32: the reference of every other way.

    Products are taken one by one: a matrix product of a single query is slower than that for the short contexts that
    this is for.

    Args:
        query: [S, H, D / H].
        key: [M, D].
        value: [M, D].
        seen: int [S, T], rows that each query may attend to.
        mask: float32 [S, T, 1], 0, or -inf for those that it does not.

    Returns:
        [S, D].
    """
    rows = len(seen) if key.device.type != "cpu" else max(1, PIECE_VALUES // (seen.shape[1] * key.shape[1]))
    pieces = zip(torch.split(query, rows), torch.split(seen, rows), torch.split(mask, rows), strict=True)
    return torch.cat([_attend(q, key, value, s, m) for q, s, m in pieces])


def future_of(place: Tensor, width: int) -> Tensor:
    """What to add to the scores of T places, -inf for those after `place`: int [S] -> float32 [S, T, 1]."""
    is_future = torch.arange(width, device=place.device) > place[:, None]
    return torch.zeros(is_future.shape, device=place.device).masked_fill_(is_future, -torch.inf)[..., None]


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Attention of [S, H, D / H] to the seen [S, T] of the rows of [M, D]: [S, D]."""
    seen_flat = seen.flatten()  # indexing with `seen` itself gives the same, five times as slowly
    shape = (*seen.shape, *query.shape[1:])
    products = query[:, None] * key.index_select(0, seen_flat).view(shape)
    scores = products.sum(-1, dtype=torch.float32) * shape[-1] ** -0.5
    share = (scores + mask).softmax(1).to(value.dtype)[..., None]
    products = share * value.index_select(0, seen_flat).view(shape)
    y: Tensor = products.sum(1, dtype=torch.float32).flatten(1).to(value.dtype)
    return y


def _layer_norm(architecture: Architecture) -> nn.LayerNorm:
    return nn.LayerNorm(architecture.n_embd, LAYER_NORM_EPS, bias=architecture.bias)
