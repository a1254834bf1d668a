"""What torch's group leaves behind, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPT = """
import os
from pathlib import Path

import numpy as np

def threads():
    names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

from shared.training.torch_ranks import TorchGroup
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
group = TorchGroup()
group.meet(0, 1, 30)
import torch
parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = torch.ones(2)
torch.optim.AdamW([parameter]).step()  # imports much of torch
import torch.distributed.nn.functional
group.sum_(np.ones(2, np.int64))
assert group.gather("a", 1) == ["a"] and group.broadcast("b") == "b"
assert threads() > 0
group.leave()
assert threads() == 0, threads()
"""


@pytest.mark.integration
def test_no_thread_of_the_library_outlives_the_group() -> None:
    """One that does now and then aborts the process at its end, whose work is done."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=REPOSITORY,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
