"""`.npy` files that are written piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt


class ArrayWriter:
    """Writes a one-dimensional array of unknown length, byte for byte as `numpy.save` would at once.

    The length in the header is right when the context is left without an exception.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._length = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> ArrayWriter:
        self._stream = open(self._path, "wb")
        self._header_bytes = self._write_header(self._stream)
        return self

    def append(self, values: npt.NDArray) -> None:
        """Writes the next values; they must have the array's dtype already, except for smaller integers."""
        assert self._stream is not None
        values.astype(self._dtype, casting="safe", copy=False).tofile(self._stream)
        self._length += len(values)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._stream is not None
        with self._stream as stream:
            if kind is None:
                stream.seek(0)
                assert self._write_header(stream) == self._header_bytes, "numpy leaves room for any length"

    def _write_header(self, stream: BinaryIO) -> int:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.tell()
