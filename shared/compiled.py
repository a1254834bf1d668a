"""Functions that numba compiles: for loops over rows that no array operation says well.

What is compiled is kept in files, of which a process trusts only what it could have written itself: they lie in a
directory that this user alone can write to, and each begins with the SHA-256 of the rest. A file is named after all
that decides its content: the function's source, what it freezes (constants, and the functions that it calls, in
whichever file they are), its types, the processor, the versions. So nothing is ever out of date, and a file that cannot
be used, for whatever reason, is made again.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import inspect
import logging
import os
import pickle
import stat
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

from shared import caches, files

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])

ORDER_FREE = {"reassoc", "contract", "nsz"}
"""What `compiled_sums` may do: everything but assume that no number is NaN or infinite."""

FORMAT = "compiled/1"
SUFFIX = ".compiled"
DIGEST_BYTES = 32
UNUSED_SECONDS = 90 * 86_400.0
"""A file that no process has read for so long is removed."""

_HARMLESS = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}
"""numba's variables that do not decide what is compiled."""
_LIBRARIES = {"math", "numba", "numpy"}
"""Modules whose functions and constants compiled code may name; their versions stand for their content."""
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type, np.generic, np.dtype)


def compiled(function: F) -> F:
    """Compiles a function for the types of its first call, and holds no lock of the interpreter while it runs.

    What is compiled is kept in NUMBA_CACHE_DIR, or in the user's cache; where it cannot be kept, one line says why, and
    every process compiles anew, which takes seconds.
    """
    return _compile(function, fastmath=False)


def compiled_sums(function: F) -> F:
    """As `compiled`, for sums that may be taken in another order than written, so that they use vector instructions.

    The order is chosen once, when the function is compiled: the same machine gives the same bits.
    """
    return _compile(function, fastmath=ORDER_FREE)


def compiled_in_place(function: F) -> F:
    """As `compiled`, for functions that make no arrays: nobody counts references in them.

    numba else counts those of each array of a tuple that such a function is called with, by atomic instructions: in
    small functions this takes far longer than what they do.
    """
    return _compile(function, fastmath=False, counts_references=False)


def _compile(function: F, fastmath: bool | set[str], counts_references: bool = True) -> F:
    dispatcher = numba.njit(nogil=True, fastmath=fastmath, _nrt=counts_references)(function)
    dispatcher._cache = Kept(dispatcher)
    return cast(F, dispatcher)


class Kept(NullCache):  # type: ignore[misc]
    """Where numba finds what it has compiled of a function, and puts what it compiles; neither ever raises."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._name = f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        """The directory, for numba's statistics."""
        folder = directory()
        return None if folder is None else str(folder)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """What was compiled for the types of a signature; None if it has to be compiled."""
        context.refresh()
        path = self._path(signature, context.codegen())
        if path is None:
            return None
        try:
            data = _read(path)
            result = CompileResult._rebuild(context, *pickle.loads(data))  # noqa: S301 - our own bytes, see above
            with contextlib.suppress(OSError):  # of root, and only read here
                os.utime(path)
            return result
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with it, it can be made again
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            log.warning("%s cannot be used (%s); compiling %s again", path, reason, self._name)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keeps what was compiled for a signature, if it can be kept."""
        path = self._path(signature, result.codegen)
        if path is None or result.library.has_dynamic_globals:
            return
        try:
            _write(path, dumps(result._reduce()))
            _remove_unused(path.parent)
        except OSError as error:
            _say_once(str(path.parent), error.strerror or str(error))

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder = directory()
        if folder is None:
            return None
        try:
            source = [*_deciding(self._dispatcher, set())]
        except OSError as error:  # no source: a frozen program
            _say_once(self._name, error.strerror or str(error))
            return None
        key = files.digest(*_environment(), str(codegen.magic_tuple()), str(signature), *source)
        return folder / f"{self._name.replace('<', '').replace('>', '')}-{key[:40]}{SUFFIX}"


def directory() -> Path | None:
    """Where compiled functions are kept; None, and a line once, if there is no such place that is this user's alone."""
    given = os.environ.get("NUMBA_CACHE_DIR") or str(numba.config.CACHE_DIR)
    try:
        return _checked(Path(given) if given else caches.user_directory())
    except OSError as error:
        _say_once(given, error.strerror or str(error))
        return None


@functools.cache
def _checked(root: Path) -> Path | None:
    folder = root / "compiled"
    try:
        caches.make_private(folder)
    except OSError as error:
        _say_once(str(folder), error.strerror or str(error))
        return None
    return folder


@functools.cache
def _say_once(place: str, reason: str) -> None:
    log.warning(
        "compiled functions cannot be kept in %s (%s): each process compiles anew, which takes seconds; "
        "NUMBA_CACHE_DIR names another place", place, reason,
    )  # fmt: skip


def _environment() -> Iterator[str]:
    """What decides how any function is compiled, besides the processor."""
    yield from (FORMAT, numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    for name in sorted(os.environ):
        if name.startswith("NUMBA_") and name not in _HARMLESS:
            yield f"{name}={os.environ[name]}"


def _deciding(dispatcher: Any, seen: set[Any]) -> Iterator[str]:
    """What decides the code of a function: its file, options, what it freezes, and the same of what it calls.

    Raises:
        TypeError: it freezes something whose changes could not be noticed.
        OSError: its source cannot be read.
    """
    function = dispatcher.py_func
    if function in seen:
        return
    seen.add(function)
    status = os.stat(inspect.getfile(function))
    yield from (function.__module__, function.__qualname__)
    yield _digest_of(inspect.getfile(function), status.st_mtime_ns, status.st_size)
    yield repr(sorted((name, _ordered(value)) for name, value in dispatcher.targetoptions.items()))
    for name, value in _frozen(function):
        yield name
        if isinstance(value, Dispatcher):
            yield from _deciding(value, seen)
        else:
            yield _constant(value, f"{function.__module__}.{function.__qualname__}: {name}")


def _ordered(value: object) -> str:
    return repr(sorted(value)) if isinstance(value, set) else repr(value)


def _constant(value: object, name: str) -> str:
    if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in _LIBRARIES:
        return value.__name__
    if isinstance(value, tuple):
        return f"({', '.join(_constant(item, name) for item in value)})"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, _CONSTANTS):
        return f"{type(value).__name__} {value!r}"
    raise TypeError(f"{name} is a {type(value).__name__}; compiled functions use numbers and each other only")


def _frozen(function: Callable[..., object]) -> Iterator[tuple[str, object]]:
    """Names and values of the globals and outer variables that a function uses, by name."""
    outer = inspect.getclosurevars(function).nonlocals
    yield from sorted(outer.items())
    for name in sorted(set(_globals_of(function.__code__))):
        if name in function.__globals__:  # else it is built in
            yield name, function.__globals__[name]


def _globals_of(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


@functools.cache
def _digest_of(path: str, _changed: int, _size: int) -> str:
    return files.file_digest(Path(path))


def _read(path: Path) -> bytes:
    """The content of a file of this user's that is as it was written.

    Raises:
        OSError: it cannot be read, or others could have written it.
        ValueError: it is not as it was written.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or not caches.is_private(status):
            raise PermissionError(f"it is not a file of this user's alone ({caches.describe(status)})")
        found, data = stream.read(DIGEST_BYTES), stream.read()
    if found != hashlib.sha256(data).digest():
        raise ValueError("it is damaged")
    return data


def _write(path: Path, data: bytes) -> None:
    """Writes a file that `_read` takes, under its name when it is whole."""
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # of mode 600
    try:
        with open(handle, "wb") as stream:
            stream.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@functools.cache
def _remove_unused(folder: Path) -> None:
    """Removes what no process has read for long: of versions and checkouts that are gone, and of processes killed."""
    before = time.time() - UNUSED_SECONDS
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < before:
                path.unlink()
