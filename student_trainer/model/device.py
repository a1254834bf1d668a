"""Where torch computes: which device a setting means, how tensors get there and back, what float32 means there.

`choose` and `share_out` decide from what torch sees and touch nothing, so that they are tested without an accelerator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import ConfigError

_NAME = re.compile(r"(auto|cpu|cuda)(?::(\d+))?")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What torch sees of accelerators.

    Attributes:
        devices: CUDA devices.
        is_built: whether this torch can use any.
    """

    devices: int
    is_built: bool = True

    @classmethod
    def here(cls) -> Seen:
        """On this machine."""
        is_built: bool = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
        return cls(torch.cuda.device_count() if torch.cuda.is_available() else 0, is_built)

    def __str__(self) -> str:
        if not self.is_built:
            return "this torch is built without CUDA"
        if self.devices < 2:
            return "torch sees one CUDA device, cuda:0" if self.devices else "torch sees no CUDA device"
        return f"torch sees {self.devices} CUDA devices, cuda:0 to cuda:{self.devices - 1}"


def choose(name: str, seen: Seen, local: int = 0, world: int = 1, setting: str = "device") -> torch.device:
    """The device that a setting means: the CPU, or a CUDA device with its index.

    Args:
        name: auto (the first accelerator, otherwise the CPU), cpu, cuda or cuda:N.
        seen: what there is.
        local: which of the ranks on this host this one is, from 0.
        world: how many ranks there are, on all hosts; several take a device each.
        setting: what the user calls it.

    Raises:
        ConfigError: there is no such device.
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[2] and match[1] != "cuda"):
        raise ConfigError(f"{setting}={name} is no device; use auto, cpu, cuda or cuda:N")
    if match[1] == "cpu" or (match[1] == "auto" and not seen.devices):
        return torch.device("cpu")
    if world > 1 and match[2]:
        raise ConfigError(f"{setting}={name} is one device; {world} ranks take one each with {setting}=cuda")
    index = local if world > 1 else int(match[2] or 0)
    if index < seen.devices:
        return torch.device("cuda", index)
    if world > 1 and seen.devices:
        raise ConfigError(
            f"{setting}={name}: the rank with LOCAL_RANK={local} needs cuda:{index}, but {seen}; start at most "
            f"{seen.devices} ranks on this host, or use {setting}=cpu"
        )
    other = f", auto or cuda:N below {seen.devices}" if seen.devices else " or auto"
    hidden = "; CUDA_VISIBLE_DEVICES may hide some" if seen.is_built else ""
    raise ConfigError(f"{setting}={name} is not here: {seen}; use {setting}=cpu{other}{hidden}")


def pick_device(name: str, local: int = 0, world: int = 1, setting: str = "device") -> torch.device:
    """The device that `choose` finds here, made this thread's current one.

    What torch keeps for "the current device" (page-locked memory, a context of some 500 MB) then belongs to the one
    that is used, rather than to the first.

    Raises:
        ConfigError: there is no such device here.
    """
    device = choose(name, Seen.here(), local, world, setting)
    make_current(device)
    return device


def describe(device: torch.device) -> str:
    """The device as people know it: cpu, or cuda:N with the card's name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def make_current(device: torch.device) -> None:
    """Makes a CUDA device this thread's current one; every thread has its own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def use_threads(count: int) -> None:
    """Sets the threads of an operation on the CPU; 0 leaves them to torch."""
    if count:
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for the operations of torch in this thread, so that sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_out(name: str, number: int, devices: int) -> str:
    """The setting of one of several processes that share a machine: of several accelerators each has its own.

    Args:
        name: what is set for all of them.
        number: which of them it is, from 0.
        devices: CUDA devices there are.
    """
    return f"cuda:{number % devices}" if name in ("auto", "cuda") and devices > 1 else name


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device, which the host does not wait for: copies from pageable memory wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows [M, d] of a table [N, d] at int64 [M]; their gradients add up in the same order in every run.

    On CUDA `index_select` adds them as they come; an embedding sorts them first, and makes no one wait.
    """
    if table.device.type == "cuda":
        return F.embedding(index, table)
    return table.index_select(0, index)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA device multiplies bfloat16 in hardware: Ampere and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def read(tensor: Tensor) -> list[Any]:
    """The numbers of a tensor [n] on the host, which waits for the accelerator.

    The only place where training does so: a step reads once (`Trainer._update`), metrics once when they are due.
    """
    numbers: list[Any] = tensor.tolist()
    return numbers


def fetch(tensor: Tensor) -> npt.NDArray:
    """The values of a tensor on the host, which waits for the accelerator; on the CPU the tensor's own memory.

    The only place where a search does so: once a step, for the answers about all its paths.
    """
    values: npt.NDArray = tensor.cpu().numpy()
    return values


class Fetching:
    """A tensor on its way to the host, which does not wait until it asks for the values."""

    def __init__(self, tensor: Tensor) -> None:
        """Starts the copy behind what the device has been given to do so far."""
        self._values, self._done = tensor, None
        if tensor.device.type == "cuda":
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def values(self) -> npt.NDArray:
        """The values, waited for."""
        if self._done is not None:
            self._done.synchronize()
        return fetch(self._values)


@contextlib.contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """What a product of float32 matrices is within the block, on CUDA: TF32, with 10 bits of mantissa, or float32.

    torch has one switch for a whole process, so everything that computes says what it wants and leaves the switch as
    it was: what a prediction is does not depend on what the process has done before.
    """
    if device.type != "cuda":
        yield
        return
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = tf32
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Mixed precision in `dtype` within the block; with none, what autocast is on outside is off inside."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
