"""Upstream checkpoints in all their layouts, and files that would like to be executed."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import FileFormatError
from teacher_server.lmtad import checkpoint
from teacher_server.lmtad.model import LMTAD, Architecture

SMALL = Architecture(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=15, bias=False)
CONFIG = {**SMALL.to_dict(), "dropout": 0.1, "pad_token": 12, "integer_poe": False}


def state(architecture: Architecture = SMALL, tied_head: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(LMTAD(architecture, tied_head=tied_head).state_dict())


@pytest.fixture
def upstream_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """Classes that pickle under upstream's names; gone from the interpreter when the file is read."""
    classes = {}
    for name in ("models.LMTAD.LMTADConfig", "datasets.PortoConfig", "datasets.POLConfig"):
        module_name, _, class_name = name.rpartition(".")
        for part in {module_name, module_name.split(".")[0]}:
            monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or types.ModuleType(part))
        made = type(class_name, (), {"__module__": module_name, "__qualname__": class_name})
        monkeypatch.setattr(sys.modules[module_name], class_name, made, raising=False)
        classes[class_name] = made
    yield types.SimpleNamespace(**classes)


def make(kind: type, **fields: Any) -> Any:
    instance = kind()
    instance.__dict__.update(fields)
    return instance


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_training_checkpoint(tmp_path: Path, upstream_modules: types.SimpleNamespace) -> None:
    content = {
        "model": OrderedDict((f"_orig_mod.{name}", tensor) for name, tensor in state().items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "model_config": make(upstream_modules.LMTADConfig, **CONFIG),
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "dataset_config": make(upstream_modules.PortoConfig, grip_size=(3, 4), data_dir="./data"),
        "args": argparse.Namespace(batch_size=4, betas=[0.9, 0.95]),
    }
    path = save(tmp_path / "c.pt", content)
    for name in ("models", "models.LMTAD", "datasets"):
        sys.modules.pop(name)
    found = checkpoint.read(path)
    assert found.layout == "training checkpoint"
    assert found.model_config == CONFIG
    assert found.dataset_config["grip_size"] == (3, 4)
    assert found.dataset_class == "PortoConfig"
    assert checkpoint.architecture(found, None) == SMALL
    assert "lm_head.weight" not in found.tensors
    expected = state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors.items())


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_removed(tmp_path: Path, prefix: str) -> None:
    content = {"state_dict": {prefix + name: t for name, t in state().items()}, "model_config": CONFIG}
    found = checkpoint.read(save(tmp_path / "c.pt", content))
    assert found.layout == "weights-only export"
    assert checkpoint.architecture(found, None) == SMALL


def test_bare_state_dict_needs_heads(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path / "c.pt", state()))
    assert found.layout == "bare state_dict"
    assert checkpoint.architecture(found, 4).n_head == 4
    with pytest.raises(FileFormatError, match="n_head=N"):
        checkpoint.architecture(found, None)
    with pytest.raises(FileFormatError, match="no multiple"):
        checkpoint.architecture(found, 3)


@pytest.mark.parametrize("bias", [False, True])
def test_sizes_come_from_the_shapes(tmp_path: Path, bias: bool) -> None:
    """Upstream's exporter writes None and -1 where it found no configuration."""
    architecture = Architecture(3, 2, 8, 6, 15, bias)
    config = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": None, "block_size": -1}
    content = {"state_dict": state(architecture), "model_config": config}
    assert checkpoint.architecture(checkpoint.read(save(tmp_path / "c.pt", content)), None) == architecture


@pytest.mark.parametrize(("name", "value"), [("n_layer", 3), ("n_embd", 16), ("block_size", 7), ("bias", True)])
def test_contradictions_are_named(tmp_path: Path, name: str, value: Any) -> None:
    found = checkpoint.read(save(tmp_path / "c.pt", {"state_dict": state(), "model_config": CONFIG | {name: value}}))
    with pytest.raises(FileFormatError, match=f"model_config says {name} = {value}, but the weights say"):
        checkpoint.architecture(found, None)


def test_contradicting_heads_are_named(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path / "c.pt", {"state_dict": state(), "model_config": CONFIG}))
    with pytest.raises(FileFormatError, match="n_head = 2, but n_head=4"):
        checkpoint.architecture(found, 4)


def test_untied_head_is_kept_and_a_copy_of_the_embedding_is_not(tmp_path: Path) -> None:
    untied = state(tied_head=False)
    assert "lm_head.weight" in checkpoint.read(save(tmp_path / "a.pt", untied)).tensors
    copied = untied | {"lm_head.weight": untied["transformer.wte.weight"].clone()}
    assert "lm_head.weight" not in checkpoint.read(save(tmp_path / "b.pt", copied)).tensors


def test_causal_masks_of_old_torch_are_ignored(tmp_path: Path) -> None:
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 6, 6).tril() for i in range(2)}
    found = checkpoint.read(save(tmp_path / "c.pt", {"state_dict": state() | masks, "model_config": CONFIG}))
    assert checkpoint.architecture(found, None) == SMALL


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ],
)
def test_dtype_is_kept_where_numpy_has_it(tmp_path: Path, stored: torch.dtype, kept: torch.dtype) -> None:
    path = save(tmp_path / "c.pt", {name: tensor.to(stored) for name, tensor in state().items()})
    assert {tensor.dtype for tensor in checkpoint.read(path).tensors.values()} == {kept}


def test_integer_poe_is_refused(tmp_path: Path) -> None:
    weights = state()
    weights["transformer.wpe.pe"] = weights.pop("transformer.wpe.weight")
    found = checkpoint.read(save(tmp_path / "c.pt", {"state_dict": weights, "model_config": CONFIG}))
    with pytest.raises(FileFormatError, match="integer_poe"):
        checkpoint.architecture(found, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "not an LM-TAD checkpoint"),
        ({"weights": {}, "epoch": 3}, "found 'weights', 'epoch'"),
        ({"state_dict": {"a": 1}}, "'a' is not a weight"),
        ({"state_dict": {1: torch.zeros(1)}}, "1 is not a weight"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a is not a dense floating-point tensor"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a has values that are not finite"),
        ({"module.a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)}, "a occurs twice"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        checkpoint.read(save(tmp_path / "c.pt", content))


def test_other_models_are_refused(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path / "c.pt", {"linear.weight": torch.zeros(2, 2)}))
    with pytest.raises(FileFormatError, match=r"lacks transformer\.wte\.weight"):
        checkpoint.architecture(found, 1)


class _Attack:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class _BuildAttack:
    """Pickles as an allowed class whose state is the result of a call."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return argparse.Namespace, (), _Attack(os.system, self.command)


class _ItemAttack:
    """Pickles as a dictionary whose item is the result of a call."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter([("model", _Attack(os.system, self.command))])


@pytest.mark.parametrize(
    "attack",
    [
        lambda command: _Attack(os.system, command),
        lambda command: _Attack(eval, f"__import__('os').system({command!r})"),
        lambda command: {"model": state(), "args": _Attack(os.system, command)},
        lambda command: {"model": state(), "args": _BuildAttack(command)},
        _ItemAttack,
    ],
)
def test_nothing_is_executed(tmp_path: Path, attack: Any) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "c.pt", attack(f"touch {canary}"))
    with pytest.raises(
        FileFormatError, match=r"(posix\.system|builtins\.eval|__builtin__\.eval).*nothing was executed"
    ):
        checkpoint.read(path)
    assert not canary.exists()


def rewrite_pickle(source: Path, target: Path, data: bytes) -> Path:
    """A torch archive with another pickle."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(entry, data if entry.filename.endswith("data.pkl") else old.read(entry))
    return target


@pytest.mark.parametrize(
    "name", ["models.LMTAD\nsystem", "models.LMTAD.os\nsystem", "argparse\n_os.system", "datasets\nPortoConfig.evil"]
)
def test_names_beside_the_known_ones_are_refused(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "c.pt", state())
    canary = tmp_path / "canary"
    command = f"touch {canary}".encode()
    call = b"\x80\x02c" + name.encode() + b"\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    path = rewrite_pickle(source, tmp_path / "d.pt", call)
    with pytest.raises(FileFormatError, match=name.replace("\n", ".")):
        checkpoint.read(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02.",
        b"garbage",
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelcargparse\nNamespace\n)\x81K\x01bs.",  # BUILD with a number
        b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD of the class itself
        pickle.dumps({"model": "x" * 10}, protocol=5),
    ],
)
def test_malformed_pickles_are_reported(tmp_path: Path, data: bytes) -> None:
    path = rewrite_pickle(save(tmp_path / "c.pt", state()), tmp_path / "d.pt", data)
    with pytest.raises(FileFormatError):
        checkpoint.read(path)
    assert not hasattr(argparse.Namespace, "a")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(FileFormatError, match=r"cannot read checkpoint .*c\.pt"):
        checkpoint.read(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(FileFormatError, match="is not a PyTorch checkpoint"):
        checkpoint.read(path)
    with open(path, "wb") as stream:
        torch.save(state(), stream, _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match=r"torch before 1\.6"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(_Attack(os.system, f"touch {tmp_path / 'canary'}")))
    with pytest.raises(FileFormatError, match="plain pickle"):
        checkpoint.read(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files_are_reported(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "c.pt", state())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FileFormatError, match="damaged or truncated"):
        checkpoint.read(path)


def test_flipped_bits_are_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pt", state())
    data = bytearray(path.read_bytes())
    weights = state()["transformer.wte.weight"].numpy().tobytes()
    data[data.index(weights) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="checksum"):
        checkpoint.read(path)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "c.pt", state())
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "d.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(FileFormatError, match="compressed"):
        checkpoint.read(tmp_path / "d.pt")


def test_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "d", ignore_errors=True)
    (tmp_path / "d").mkdir()
    with pytest.raises(FileFormatError, match="cannot read checkpoint"):
        checkpoint.read(tmp_path / "d")
