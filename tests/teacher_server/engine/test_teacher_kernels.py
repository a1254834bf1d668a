"""The teacher's kernels without CUDA: their values in Triton's interpreter, their code from its compiler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import REPOSITORY

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install -e '.[kernels]'"
)
ATTENTION = {"heads": 12, "size": 64, "together": 4, "columns": 64, "places": 8}
KERNELS: dict[str, tuple[dict[str, int], int]] = {
    "_attend_kernel": (ATTENTION, 1),
    "_dot_kernel": ({"width": 768, "columns": 1024}, 1),
    "_log_sum_kernel": ({"width": 52_002, "columns": 2048}, 4),
}
HALF, REAL, INDEX = "*fp16", "*fp32", "*i32"


@needs_triton
def test_values_are_those_of_float64_and_do_not_depend_on_the_place() -> None:
    """In a process of its own: Triton looks for the interpreter when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "support.teacher_kernels"],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found) == 21
    for measured in found:
        if measured["what"] == "places":
            assert measured["difference"] == 0
        else:
            assert measured["difference"] < (2e-3 if measured["dtype"] == "torch.float16" else 5e-6), measured


@needs_triton
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_kernels_compile_for_an_accelerator(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size of a real teacher, without atomics."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns that its default will change
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from teacher_server.engine import kernels

    function: Any = getattr(kernels, kernel)
    constants, warps = KERNELS[kernel]
    types = dict.fromkeys(("query", "key", "value", "states", "head"), HALF)
    types |= dict.fromkeys(("seen", "place", "pairs"), INDEX) | {"scale": "fp32", "logits": REAL}
    types |= {name: "i32" for name in function.arg_names if name.endswith("_stride")}
    types |= {"out": HALF if kernel == "_attend_kernel" else REAL} | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert "atom" not in compiled.asm["ptx"] and compiled.asm["cubin"]
