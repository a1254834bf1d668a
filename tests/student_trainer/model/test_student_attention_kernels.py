"""The kernels for CUDA without CUDA: their values in Triton's interpreter, their code from its compiler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from student_trainer.model import graph_attention
from student_trainer.model.road_graph import RoadGraph

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install -e '.[kernels]'"
)
POINTER, INDEX, REAL = "*fp32", "*i64", "*bf16"


@needs_triton
def test_values_and_gradients_are_those_of_the_loops() -> None:
    """In a process of its own: Triton looks for the interpreter when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "support.attention_kernels"],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found) == 18
    for differences in found:
        tolerance = 1e-5 if differences.pop("dtype") == "torch.float32" else 1e-2
        assert max(differences.values()) < tolerance, differences


@needs_triton
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_into_kernel", "_backward_out_of_kernel"])
def test_kernels_compile_for_an_accelerator(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns that its default will change
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from student_trainer.model import attention_kernels

    function: Any = getattr(attention_kernels, kernel)
    constants = {"width": 128, "columns": 128, "rows": attention_kernels.ROWS}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = dict.fromkeys(("left", "right", "on_attr", "att"), REAL) | {"slope": "fp32", "count": "i32"}
    types |= dict.fromkeys(("offsets", "source", "edges", "target"), INDEX) | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, POINTER) for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert "atom" not in compiled.asm["ptx"] and compiled.asm["cubin"]


def test_accelerators_without_kernels_get_torch_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which is none of ours: shapes and no error."""
    graph = RoadGraph(torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 2), 3, 1)
    hop = graph.whole_on(torch.device("meta")).hops[0]
    left, right, edges, weight = (torch.empty(shape, device="meta") for shape in ((3, 4), (3, 4), (4, 2), (4,)))
    assert graph_attention.attend(left, right, edges, weight, hop).shape == (3, 4)
