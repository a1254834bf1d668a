"""Which of our kernels compute on this device: those that give the reference's values here, and give them sooner.

The kernels need Triton, which comes with torch for CUDA, and a C compiler. Whatever is missing or goes wrong, the
reference in torch's operations computes, and the log says why.

Shapes: M rows, D width, H heads, V vocabulary, T padded length.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teacher_server.engine.streams import Streams
from teacher_server.lmtad.model import LMTAD, AttendTo, attend_by_gathering, future_of

log = logging.getLogger(__name__)

ROWS = 4096
"""Rows, candidates or states that both ways are given."""
WIDTH = 5
"""T of the comparison: windows of four."""
TIMES = 5
"""Calls that are timed."""
NORMALISED = 256
"""Rows of the normaliser that both ways are given."""
ROUNDINGS = 16.0
"""Most that the values may differ from the reference's, in units of the dtype's precision by the largest value."""
SUM_TOLERANCE = 1e-3
"""Most that a float32 logit may differ, as a share of the largest, or a normaliser."""


@dataclasses.dataclass(frozen=True)
class Fused:
    """Kernels in place of torch's operations; none: the operations.

    Attributes:
        attend: in place of `attend_by_gathering`.
        dots: states [U, D], head [V, D], pairs int [n, 2] -> logits float32 [n].
        product: of [n, D] and [D, V] in half precision, summed and given in float32.
        log_sums: log of the sum of exponentials of each row: float32 [n, V] -> [n].
    """

    attend: AttendTo | None = None
    dots: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    product: Callable[[Tensor, Tensor], Tensor] | None = None
    log_sums: Callable[[Tensor], Tensor] | None = None

    @property
    def names(self) -> list[str]:
        """Of those that are used."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]


@torch.inference_mode()
def choose(network: LMTAD, streams: Streams) -> Fused:
    """Compares and times each kernel on the network's device, within `Streams.computing`."""
    try:
        kernels = _kernels()
    except ImportError as error:
        log.warning("no kernels of our own: %s; Triton comes with torch for CUDA", error)
        kernels = None
    weight = network.lm_head.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    found: dict[str, Any] = {}
    tries: list[tuple[str, Callable[[], _Ways]]] = [("product", functools.partial(_product, weight, generator))]
    if kernels is not None:
        tries += [
            ("attend", functools.partial(_attention, network, kernels.attend, generator)),
            ("dots", functools.partial(_dots, weight, kernels.dots, generator)),
            ("log_sums", functools.partial(_log_sums, weight, kernels.log_sums, generator)),
        ]
    for name, make in tries:
        try:
            ways = make()
            if _is_better(name, ways, streams):
                found[name] = ways.function
        except Exception as error:  # a compiler's, Triton's, the driver's: the reference computes, and is tried next
            log.warning("%s: not used, %s: %s", name, type(error).__name__, str(error).partition("\n")[0])
    return Fused(**found)


def _kernels() -> Any:
    """The module, which imports Triton; raises `ImportError` where there is none."""
    return importlib.import_module("teacher_server.engine.kernels")


@dataclasses.dataclass(frozen=True)
class _Ways:
    """Two ways to the same values.

    Attributes:
        function: that would be used.
        fused: calls it.
        reference: calls torch's operations.
        tolerance: largest difference allowed.
    """

    function: Callable[..., Tensor]
    fused: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    tolerance: float


def _is_better(name: str, ways: _Ways, streams: Streams) -> bool:
    fused, reference = ways.fused(), ways.reference()
    if fused.shape != reference.shape or fused.dtype != reference.dtype:
        log.warning("%s: not used, it gives other shapes", name)
        return False
    difference = float((fused.float() - reference.float()).abs().max())
    if not difference <= ways.tolerance:
        log.warning("%s: not used, its values differ by %.3g, more than %.3g", name, difference, ways.tolerance)
        return False

    def run(way: Callable[[], Tensor]) -> float:
        return min(streams.milliseconds(way, TIMES) for _ in range(2))

    ours, theirs = run(ways.fused), run(ways.reference)
    is_used = ours <= theirs
    log.info("%s: %s, %.3f ms against %.3f", name, "used" if is_used else "not used", ours, theirs)
    return is_used


def _attention(network: LMTAD, function: AttendTo, generator: torch.Generator) -> _Ways:
    weight, heads = network.lm_head.weight, network.architecture.n_head
    width = weight.shape[1]
    joined = torch.randn(ROWS, 3 * width, generator=generator, device=weight.device).to(weight.dtype)
    query, key, value = torch.split(joined, width, -1)
    numbers = torch.randint(ROWS, (ROWS, 2 + WIDTH), generator=generator, device=weight.device, dtype=torch.int32)
    place, seen = numbers[:, 1] % WIDTH, numbers[:, 2:]
    rows = query.view(ROWS, heads, width // heads)
    return _Ways(
        function,
        lambda: function(query=rows, key=key, value=value, seen=seen, place=place),
        lambda: attend_by_gathering(rows, key, value, seen, future_of(place, WIDTH)),
        ROUNDINGS * torch.finfo(weight.dtype).eps * float(value.abs().max()),
    )


def _dots(weight: Tensor, function: Callable[..., Tensor], generator: torch.Generator) -> _Ways:
    states = torch.randn(ROWS, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    pairs = torch.randint(len(weight), (ROWS, 2), generator=generator, device=weight.device, dtype=torch.int32)
    pairs[:, 0] %= ROWS
    reference = dots_by_gathering(states, weight, pairs)
    return _Ways(
        function,
        lambda: function(states, weight, pairs),
        lambda: dots_by_gathering(states, weight, pairs),
        SUM_TOLERANCE * float(reference.abs().max()),
    )


def _product(weight: Tensor, generator: torch.Generator) -> _Ways:
    """torch's own, where it has it."""
    states = torch.randn(NORMALISED, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    wide = weight.float().T
    reference = states.float() @ wide
    return _Ways(
        _wide_product,
        lambda: _wide_product(states, weight.T),
        lambda: states.float() @ wide,
        SUM_TOLERANCE * float(reference.abs().max()),
    )


def _log_sums(weight: Tensor, function: Callable[[Tensor], Tensor], generator: torch.Generator) -> _Ways:
    logits = 5 * torch.randn(NORMALISED, len(weight), generator=generator, device=weight.device)
    return _Ways(function, lambda: function(logits), lambda: torch.logsumexp(logits, -1), SUM_TOLERANCE)


def dots_by_gathering(states: Tensor, head: Tensor, pairs: Tensor) -> Tensor:
    """The reference of `Fused.dots`: states [U, D], head [V, D], pairs int [n, 2] -> float32 [n]."""
    return (states[pairs[:, 0]].float() * head[pairs[:, 1]].float()).sum(-1)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right, out_dtype=torch.float32)
