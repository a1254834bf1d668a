"""Reads a checkpoint without torch: what any version of it, or none, must find in the file."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8", "ByteStorage": "u1", "BoolStorage": "?"}


def read_plainly(path: Path) -> dict[str, Any]:
    """The content, with arrays in place of tensors; anything but plain values and tensors is refused."""
    with zipfile.ZipFile(path) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = index.removesuffix("data.pkl")
        assert archive.read(f"{folder}byteorder") == b"little"
        return _Reader(io.BytesIO(archive.read(index)), lambda key: archive.read(f"{folder}data/{key}")).load()


class _Reader(pickle.Unpickler):
    def __init__(self, index: io.BytesIO, record: Callable[[str], bytes]) -> None:
        super().__init__(index)
        self._record = record

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise AssertionError(f"the file names {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        assert kind == "storage"
        array = np.frombuffer(self._record(key), dtype)
        assert len(array) == count
        return array


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
