"""What is asked of CUDA, in which order and on which stream, by a CUDA that only writes it down; and what its
libraries are told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_teacher_engine import CPU, MODEL, make_engine

from teacher_server.engine import arithmetic
from teacher_server.engine.fused import Fused
from teacher_server.engine.streams import CudaStreams, Direct

HERE = torch.device("cpu")


class Diary:
    """Stands in for `torch.cuda`.

    Attributes:
        lines: what was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.now = "default"
        self._names = iter(("compute", "copy"))
        self._monkeypatch = monkeypatch
        for name in ("Stream", "Event", "stream", "default_stream", "CUDAGraph", "graph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        monkeypatch.setattr(torch.Tensor, "copy_", lambda *given, **named: self._copy(*given, **named))

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.lines.append(f"pin on {self.now}")
        return tensor

    def _copy(self, there: torch.Tensor, here: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        self.lines.append(f"copy {'in the background' if non_blocking else 'and wait'} on {self.now}")
        there.numpy()[...] = here.numpy()
        return there

    def Stream(self, device: torch.device) -> Any:  # noqa: N802
        """A stream that tells what it waits for."""
        return _Stream(self, next(self._names))

    def Event(self, enable_timing: bool = False) -> Any:  # noqa: N802
        """An event of a class of its own, so that `isinstance` knows it."""
        return _Event(self)

    def default_stream(self, device: torch.device) -> str:
        """What brought the weights."""
        return "default"

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        """Changes the current stream."""
        before, self.now = self.now, stream.name
        yield
        self.now = before

    def graph_pool_handle(self) -> str:
        """A pool."""
        self.lines.append("pool")
        return "pool 1"

    def CUDAGraph(self) -> Any:  # noqa: N802
        """A graph that can be replayed."""
        return _Graph(self)

    @contextlib.contextmanager
    def graph(self, graph: _Graph, pool: str, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
        """Records."""
        self.lines.append(f"record into {pool} on {stream.name}, {capture_error_mode}")
        yield
        self.lines.append("recorded")


class _Stream:
    def __init__(self, diary: Diary, name: str) -> None:
        self._diary, self.name = diary, name

    def wait_stream(self, other: str) -> None:
        self._diary.lines.append(f"{self.name} waits for {other}")

    def wait_event(self, event: _Event) -> None:
        self._diary.lines.append(f"{self.name} waits for {event.of}")

    def synchronize(self) -> None:
        self._diary.lines.append(f"the host waits for {self.name}")


class _Event:
    def __init__(self, diary: Diary) -> None:
        self._diary, self.of = diary, ""

    def record(self, stream: _Stream) -> None:
        self.of = stream.name

    def synchronize(self) -> None:
        self._diary.lines.append(f"the host waits for {self.of}")

    def elapsed_time(self, other: _Event) -> float:
        return 12.0


class _Graph:
    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def replay(self) -> None:
        self._diary.lines.append(f"replay on {self._diary.now}")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    return Diary(monkeypatch)


def test_copies_there_have_a_stream_of_their_own_and_only_the_copy_back_is_waited_for(diary: Diary) -> None:
    streams = CudaStreams(HERE)
    memory = streams.memory(4, torch.int32)
    memory.numbers[:] = [1, 2, 3, 4]
    streams.arrived(streams.upload(memory.here, memory.there))
    assert memory.there.tolist() == [1, 2, 3, 4]
    memory.numbers[:] = 0
    streams.download(memory.there, memory.here)
    assert memory.numbers.tolist() == [1, 2, 3, 4]
    assert diary.lines == [
        "compute waits for default", "pin on copy", "copy in the background on copy", "compute waits for copy",
        "copy in the background on compute", "the host waits for compute",
    ]  # fmt: skip


def test_graphs_are_recorded_on_the_compute_stream_and_share_their_memory(diary: Diary) -> None:
    streams = CudaStreams(HERE)
    replays = [streams.record(lambda: diary.lines.append("computes")) for _ in range(2)]
    with streams.computing():
        replays[0]()
    once = ["record into pool 1 on compute, thread_local", "computes", "recorded"]
    assert diary.lines[1:] == ["pool", *once, *once, "replay on compute"]


def test_times_are_of_one_call(diary: Diary) -> None:
    calls: list[str] = []
    assert CudaStreams(HERE).milliseconds(lambda: calls.append(diary.now), 4) == 3.0
    assert calls == ["compute"] * 5


def test_libraries_are_told_to_leave_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    before = [
        (name, getattr(matmul, name))
        for name in (
            "allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
        )
    ]  # fmt: skip
    monkeypatch.delenv(arithmetic.WORKSPACE, raising=False)
    try:
        matmul.allow_tf32 = True
        arithmetic.fix()
        assert os.environ[arithmetic.WORKSPACE] == ":4096:8"
        assert [bool(getattr(matmul, name)) for name, _ in before] == [False] * 3
    finally:
        for name, value in before:
            setattr(matmul, name, value)
    monkeypatch.setenv(arithmetic.WORKSPACE, ":16:8")
    arithmetic.fix()
    assert os.environ[arithmetic.WORKSPACE] == ":16:8"


def test_numerics_name_libraries_driver_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of any gives other numerics, the same ones the same."""
    scorer = make_engine(MODEL, CPU, Direct(HERE))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    scorer._device = torch.device("cuda", 0)
    found = []
    for versions in (["13.0", "13.0.2", "580"], ["13.0", "13.1.0", "580"], ["13.0", "13.0.2", "581"]):
        monkeypatch.setattr(arithmetic, "versions", lambda versions=versions: versions)
        found.append(scorer._digest("revision", "float16"))
    scorer._fused = Fused(attend=lambda query, key, value, seen, place: query)
    found.append(scorer._digest("revision", "float16"))
    assert len(set(found)) == 4 and scorer._digest("revision", "float16") == found[-1]


def test_versions_are_found_or_said_to_be_unknown() -> None:
    cuda, cublas, driver = arithmetic.versions()
    assert cuda == str(torch.version.cuda)
    assert cublas == "unknown" or cublas.count(".") == 2
    assert driver
