"""LM-TAD against a plain float64 transcription of its definition, and its parameter names."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from shared.errors import FileFormatError
from teacher_server.lmtad import model as model_module
from teacher_server.lmtad.model import LMTAD, Architecture

SMALL = Architecture(n_layer=2, n_head=3, n_embd=12, block_size=10, vocab_size=17, bias=True)
_erf = np.vectorize(math.erf)


def random_model(architecture: Architecture, tied_head: bool = True, seed: int = 0) -> LMTAD:
    torch.manual_seed(seed)
    model = LMTAD(architecture, tied_head=tied_head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def by_definition(weights: dict[str, np.ndarray], n_layer: int, n_head: int, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence, one head and one query at a time."""

    def weight(name: str) -> np.ndarray:
        return weights[name].astype(np.float64)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weight(f"{name}.weight").T + (weight(f"{name}.bias") if f"{name}.bias" in weights else 0.0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight(f"{name}.weight")
        return y + (weight(f"{name}.bias") if f"{name}.bias" in weights else 0.0)

    x = weight("transformer.wte.weight")[tokens] + weight("transformer.wpe.weight")[: len(tokens)]
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        query, key, value = np.split(linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn"), 3, -1)
        attended = np.zeros_like(x)
        size = x.shape[1] // n_head
        for head in range(n_head):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(tokens)):
                scores = key[: t + 1, part] @ query[t, part] / math.sqrt(size)
                share = np.exp(scores - scores.max())
                attended[t, part] = share / share.sum() @ value[: t + 1, part]
        x = x + linear(attended, f"{block}.attn.c_proj")
        wide = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(wide * 0.5 * (1 + _erf(wide / math.sqrt(2))), f"{block}.mlp.c_proj")
    head_name = "lm_head.weight" if "lm_head.weight" in weights else "transformer.wte.weight"
    return norm(x, "transformer.ln_f") @ weight(head_name).T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied_head", [False, True])
def test_logits_follow_the_definition(bias: bool, tied_head: bool) -> None:
    architecture = Architecture(2, 3, 12, 10, 17, bias)
    model = random_model(architecture, tied_head)
    tokens = np.array([16, 0, 5, 5, 9, 13, 2])
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(logits, by_definition(model.weights(), 2, 3, tokens), atol=2e-4)


def test_padding_on_the_right_is_invisible() -> None:
    model = random_model(SMALL)
    tokens = torch.tensor([[16, 1, 2, 3]])
    padded = torch.tensor([[16, 1, 2, 3, 14, 14, 14]])
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(padded)[:, :4], model.hidden(tokens))


@pytest.mark.parametrize("bias", [False, True])
def test_hidden_states_at_some_places(bias: bool) -> None:
    model = random_model(dataclasses.replace(SMALL, bias=bias))
    tokens = torch.tensor([[16, 1, 2, 3], [16, 4, 4, 1], [16, 0, 9, 9]])
    places = torch.tensor([3, 0, 6, 11, 11])
    with torch.no_grad():
        torch.testing.assert_close(model.hidden_at(tokens, places), model.hidden(tokens).flatten(0, 1)[places])


@pytest.mark.parametrize("piece", [1, 1 << 19])
@pytest.mark.parametrize("bias", [False, True])
def test_hidden_states_of_a_tree(bias: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """[16 1 2], [16 1 3] and [16 4]: five nodes, in an order of their own, for eight tokens."""
    monkeypatch.setattr(model_module, "PIECE_VALUES", piece)
    model = random_model(dataclasses.replace(SMALL, bias=bias))
    tokens, depth = torch.tensor([3, 16, 4, 1, 2]), torch.tensor([2, 0, 1, 1, 2])
    ancestors = torch.tensor([[1, 3, 0], [1, 0, 0], [1, 2, 0], [1, 3, 0], [1, 3, 4]])
    scored = torch.tensor([4, 0, 2, 1])
    with torch.no_grad():
        found = model.hidden_of_tree(tokens, depth, ancestors, scored)
        for state, context in zip(found, ([16, 1, 2], [16, 1, 3], [16, 4], [16]), strict=True):
            torch.testing.assert_close(state, model.hidden(torch.tensor([context]))[0, -1])


@pytest.mark.parametrize("tied_head", [False, True])
def test_a_shallow_model_shares_the_first_blocks(tied_head: bool) -> None:
    model = random_model(SMALL, tied_head)
    shallow = model.shallow(1)
    assert len(shallow.transformer.h) == 1
    assert {p.data_ptr() for p in shallow.parameters()} < {p.data_ptr() for p in model.parameters()}


def test_names_are_the_public_ones() -> None:
    names = set(LMTAD(Architecture(1, 2, 8, 4, 9, bias=False)).state_dict())
    block = "transformer.h.0."
    assert names == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        block + "ln_1.weight",
        block + "attn.c_attn.weight",
        block + "attn.c_proj.weight",
        block + "ln_2.weight",
        block + "mlp.c_fc.weight",
        block + "mlp.c_proj.weight",
        "transformer.ln_f.weight",
        "lm_head.weight",
    }


def test_published_size() -> None:
    """96.31 M + 768 a token of block, for 51,660 cells (reference implementation, counted)."""
    model = LMTAD.without_values(Architecture(8, 12, 768, 1024, 51_663, bias=False), tied_head=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(model.state_dict()) == 52
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(96.31e6 + 768 * 1024, rel=1e-4)


@pytest.mark.parametrize("tied_head", [False, True])
def test_weights_round_trip(tied_head: bool) -> None:
    model = random_model(SMALL, tied_head)
    again = LMTAD.from_weights(SMALL, model.weights())
    assert again.tied_head is tied_head
    assert ("lm_head.weight" in model.weights()) is not tied_head
    tokens = torch.tensor([[16, 3, 4]])
    assert torch.equal(again(tokens), model(tokens))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_teacher_is_loaded_without_torch_s_compiler() -> None:
    """Which takes over a second to import, and random numbers on the meta device would."""
    code = """
import sys
from teacher_server.lmtad.model import LMTAD, Architecture
sizes = Architecture(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=9, bias=True)
LMTAD.from_weights(sizes, LMTAD(sizes).weights()).shallow(1)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == ["False"]


def test_dropout_is_only_for_training() -> None:
    model = LMTAD(SMALL, dropout=0.5)
    tokens = torch.tensor([[16, 3, 4, 1, 2]])
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("transformer.ln_f.weight"), "1 missing"),
        (lambda w: w.update(extra=np.zeros(1, np.float32)), "1 unexpected"),
        (lambda w: w.update({"transformer.ln_f.weight": np.zeros(3, np.float32)}), r"shape \[3\], expected \[12\]"),
    ],
)
def test_wrong_weights_are_named(change: Any, expected: str) -> None:
    weights = random_model(SMALL).weights()
    change(weights)
    with pytest.raises(FileFormatError, match=expected):
        LMTAD.from_weights(SMALL, weights)


@pytest.mark.parametrize(
    "values",
    [
        {"n_layer": 0},
        {"n_embd": "12"},
        {"bias": 1},
        {"n_head": 5},
        {"more": 1},
    ],
)
def test_impossible_architectures_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match="architecture"):
        Architecture.from_dict(SMALL.to_dict() | values)
