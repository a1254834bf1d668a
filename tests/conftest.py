"""Fixtures that several packages' tests share: reference data, a tiny teacher, a running server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

from shared import teacher_file
from shared.grid import Grid
from shared.vocab import Tokeniser, Vocabulary

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Of several processes that test side by side each has a core; threads would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is the machine's load.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# A shell starts its background jobs deaf to SIGINT, nohup its program to SIGHUP, and so would be the processes that
# tests send these to. A handler is not inherited, and one that does nothing lets the tests survive a hang-up.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests begin: at the end one worker would be left alone with them while the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A test leaves no handler of its own to those that come after it in its process."""
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in heard.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def reference_path(*parts: str) -> Path:
    """A file of what the public implementations computed; `tests/reference/README.md` says how they were made."""
    return REPOSITORY.joinpath("tests", "reference", *parts)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher file with random weights: 2 layers x 2 heads x 16, block 16, a full grid of 5 x 8 cells."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    write_tiny_teacher(path)
    return path


def write_tiny_teacher(
    path: Path, seed: int = 0, tokeniser: Tokeniser | None = None, block_size: int = 16
) -> teacher_file.TeacherHeader:
    """Writes a random teacher of the given vocabulary; its answers are far from uniform."""
    if tokeniser is None:
        grid = Grid.from_bounds((37.0, -122.0, 37.045, -121.925), 0.01, 0.01)
        tokeniser = Tokeniser(Vocabulary.full(grid.cells), grid)
    layers, heads, width = 2, 2, 16
    shapes = {
        "transformer.wte.weight": (tokeniser.vocabulary.size, width),
        "transformer.wpe.weight": (block_size, width),
        "transformer.ln_f.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"transformer.h.{layer}."
        shapes |= {
            prefix + "ln_1.weight": (width,),
            prefix + "attn.c_attn.weight": (3 * width, width),
            prefix + "attn.c_proj.weight": (width, width),
            prefix + "ln_2.weight": (width,),
            prefix + "mlp.c_fc.weight": (4 * width, width),
            prefix + "mlp.c_proj.weight": (width, 4 * width),
        }
    random = np.random.default_rng(seed)
    weights = {
        name: random.normal(float("ln_" in name), 0.3, shape).astype(np.float32) for name, shape in shapes.items()
    }
    architecture = {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "block_size": block_size,
        "vocab_size": tokeniser.vocabulary.size,
        "bias": False,
    }
    return teacher_file.write(path, weights, architecture, tokeniser, {"source": f"random, seed {seed}"})


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """A CUDA device with its index; skips with a notice where there is none.

    TEST_ACCELERATOR=cpu gives the CPU instead, which shows that the tests themselves are sound.
    """
    import torch  # takes seconds, and few tests need it

    if os.environ.get("TEST_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("NOTICE: there is no CUDA device here; the tests marked cuda are skipped")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def cuda(accelerator: torch.device) -> torch.device:
    """The CUDA device, for what a CPU cannot stand in for."""
    if accelerator.type != "cuda":
        pytest.skip("needs CUDA itself")
    return accelerator


@dataclasses.dataclass(frozen=True)
class RunningTeacher:
    """A server in a process of its own.

    Attributes:
        address: where it listens, as a client dials it.
        metrics: HOST:PORT of its metrics, or None.
        ready: the line that it printed when it was ready.
        process: to signal and wait for.
    """

    address: str
    metrics: str | None
    ready: dict[str, Any]
    process: subprocess.Popen[str]


TeacherStarter = Callable[..., contextlib.AbstractContextManager[RunningTeacher]]


@pytest.fixture
def running_teacher() -> TeacherStarter:
    """Starts `teacher-server serve`: `with running_teacher(path, "key=value", ...) as server:`."""
    return start_teacher


@contextlib.contextmanager
def start_teacher(
    teacher: Path, *overrides: str, listen: str = "127.0.0.1:0", module: str = "teacher_server"
) -> Iterator[RunningTeacher]:
    """Runs a server on free ports until the block ends; on the CPU, unless the overrides say otherwise.

    `module` is run instead of the command: one of the tests, perhaps, that registers another teacher first.
    """
    command = [sys.executable, "-m", module, "serve", "--teacher", str(teacher), "--listen", listen]
    process = subprocess.Popen(
        [*command, "--metrics-listen", "127.0.0.1:0", "engine.device=cpu", *overrides],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests")},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"the server ended with {process.wait()} before it was ready; its log is above"
        ready = json.loads(line)
        yield RunningTeacher(ready["listening"], ready["metrics"], ready, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
