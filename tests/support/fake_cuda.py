"""Tensors that lie on `cuda:0` where there is no GPU: torch's fake tensors, which have shapes and devices, no values.

What needs values on the host fails: `.item()`, `.tolist()`, `bool(tensor)`, `nonzero`, indexing by a mask. `Watch` also
refuses what fakes, or tensors of the meta device, let pass: operations on tensors of several devices, copies to the
host, and copies to a device for which the host waits. A torch without CUDA has no backward pass on fakes of that
device; the meta device has one.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from student_trainer.data.network import RoadNetwork
from student_trainer.model.hoser import HOSER
from student_trainer.model.road_graph import RoadGraph

CUDA, META = torch.device("cuda", 0), torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class HostWaits(AssertionError):
    """The host would wait for the device, or the operation fail there."""


class PageLocked:
    """Host tensors that are page-locked, as `Tensor.pin_memory` leaves them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def pin(self, tensor: Tensor) -> Tensor:
        """Stands in for `Tensor.pin_memory`."""
        assert tensor.device.type == "cpu"
        if tensor in self:
            return tensor
        self._tensors.append(tensor.clone())
        return self._tensors[-1]

    def __contains__(self, tensor: object) -> bool:
        return any(tensor is other for other in self._tensors)


class Watch(TorchDispatchMode):
    """Refuses what makes the host wait for a device, or mixes devices.

    Attributes:
        copies: tensors copied to the device.
    """

    def __init__(self, locked: PageLocked | None = None) -> None:
        """With the page-locked tensors, copies from others are refused."""
        super().__init__()
        self._locked = locked
        self.copies = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at the devices of what goes in and comes out."""
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and function.namespace == "aten" and function._can_decompose():
            with self:  # operations come whole there: `.to` rather than the copy that it makes
                return function.decompose(*args, **kwargs)
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if function not in COPIES:
            kinds = {tensor.device.type for tensor in given if tensor.dim() or tensor.device.type != "cpu"}
            if len(kinds) > 1:
                raise HostWaits(f"{function} of tensors on {sorted(kinds)}")
            return function(*args, **kwargs)
        source, result = given[-1], function(*args, **kwargs)
        target = (given[0] if len(given) > 1 else result).device.type
        if source.device.type != "cpu" and target == "cpu":
            raise HostWaits(f"a copy of {list(source.shape)} to the host")
        if source.device.type == "cpu" and target != "cpu":
            self.copies += 1
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if self._locked is not None and not (non_blocking and source in self._locked):
                raise HostWaits(f"a copy of {list(source.shape)} for which the host waits")
        return result


def lend_device_guard() -> None:
    """Gives a torch for CPUs only the empty device guard of CUDA, without which it cannot index a fake tensor.

    A torch with CUDA has it on machines without a GPU: where the guard that it finds counts no devices, fake tensors
    have it replaced. A torch without finds none, so it is lent one that answers 0 to whatever it is asked.
    """
    if torch.backends.cuda.is_built():
        return
    answer = ctypes.CFUNCTYPE(ctypes.c_int8)(lambda: 0)
    methods = (ctypes.c_void_p * 64)(*[ctypes.cast(answer, ctypes.c_void_p).value] * 64)
    guard = ctypes.c_void_p(ctypes.addressof(methods))
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    register = library["_ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE"]
    register.argtypes, register.restype = [ctypes.c_int8, ctypes.c_void_p], None
    register(1, ctypes.addressof(guard))  # 1: CUDA
    torch._C._ensureCUDADeviceGuardSet()  # which lets go of ours


_numpy = torch.Tensor.numpy


def numpy_of(tensor: Tensor) -> npt.NDArray:
    """Stands in for `Tensor.numpy`, which makes a fake of the host's real tensor first."""
    with unset_fake_temporarily():
        return _numpy(tensor)


class FakeCuda:
    """A `cuda:0` whose tensors are fake.

    Attributes:
        watch: refuses that the host waits for it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, from_pageable: bool = False) -> None:
        """With copies to the device from pageable memory, for which the host waits, or without."""
        lend_device_guard()
        locked = PageLocked()
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.pin(tensor))
        monkeypatch.setattr(torch.Tensor, "numpy", numpy_of)
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        self._mode, self.watch = FakeTensorMode(allow_non_fake_inputs=True), Watch(None if from_pageable else locked)

    @contextlib.contextmanager
    def here(self, watched: bool = True) -> Iterator[None]:
        """Within the block tensors may be on it; not watched, the host may wait."""
        with self._mode, self.watch if watched else contextlib.nullcontext():
            yield


class Reads:
    """Stands in for a function that is the only one to wait for a device.

    Attributes:
        by: who called it.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self.by: list[str] = []

    def __call__(self, tensor: Tensor) -> Any:
        """So many numbers, all alike."""
        assert tensor.device.type != "cpu"
        self.by.append(sys._getframe(1).f_code.co_qualname)
        return [self._value] * len(tensor)


def lend_graph(model: HOSER, network: RoadNetwork) -> None:
    """The road graph, which a model derives from its buffers once, for one whose buffers have no values."""
    edges, attr = (torch.from_numpy(np.array(array)) for array in (network.road_edge_index, network.intersection_attr))
    model.road_network_encoder._graph = RoadGraph(edges, attr, network.num_roads, model.config.num_graph_layers)
