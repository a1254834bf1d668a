"""Running sums on the device, and wall-clock shares of a step."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from student_trainer.model import device as devices


class Sums:
    """Sums and counts by name; values stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, total: Tensor | float, count: int) -> None:
        """Adds a sum over `count` things; accumulates in float64."""
        value = total.detach() if isinstance(total, Tensor) else total
        if name in self._sums:
            value = _wide(self._sums[name]) + _wide(value)
        self._sums[name] = value
        self._counts[name] += count

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self._sums)

    def count(self, name: str) -> int:
        """How many things were added under a name."""
        return self._counts[name]

    def merge(self, other: Sums) -> None:
        """Adds all that another one holds."""
        for name, total in other._sums.items():
            self.add(name, total, other._counts[name])

    def totals(self) -> dict[str, tuple[float, int]]:
        """Sums and counts as plain numbers."""
        return {name: (total, self._counts[name]) for name, total in self._numbers().items()}

    def _numbers(self) -> dict[str, float]:
        """The sums on the host, which waits for an accelerator once."""
        if any(isinstance(total, Tensor) for total in self._sums.values()):
            self.read()
        return {name: float(total) for name, total in self._sums.items()}

    def read(self, *others: Tensor) -> list[float]:
        """Brings the sums to the host, which waits for an accelerator once; also gives values of other tensors []."""
        on_device = {name: total for name, total in self._sums.items() if isinstance(total, Tensor)}
        values = [*others, *on_device.values()]
        numbers = devices.read(torch.stack(values).double())
        self._sums |= zip(on_device, numbers[len(others) :], strict=True)
        return numbers[: len(others)]

    @classmethod
    def of(cls, totals: Sequence[Mapping[str, tuple[float, int]]]) -> Sums:
        """The sum of several `totals`, added in their order."""
        sums = cls()
        for one in totals:
            for name, (total, count) in one.items():
                sums.add(name, total, count)
        return sums

    def means(self) -> dict[str, float]:
        """The mean of everything that was counted."""
        return {name: total / self._counts[name] for name, total in self._numbers().items() if self._counts[name]}


def _wide(total: Tensor | float) -> Tensor | float:
    return total.double() if isinstance(total, Tensor) else total


class Stopwatch:
    """Wall-clock seconds spent in the stages of a step, as the host sees them.

    An accelerator works asynchronously: its time shows in the stage that waits for it, unless every stage does.

    Attributes:
        seconds: by stage.
        steps, positions: done meanwhile, on all ranks.
        padded_steps, trip_steps: steps of trips that this rank has computed, with padding and without.
    """

    def __init__(self, awaited: torch.device | None = None) -> None:
        """With a CUDA device to wait for at the end of each stage, which costs time, or without."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = self.positions = 0
        self.padded_steps = self.trip_steps = 0
        self._awaited = awaited

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._awaited is not None:
                torch.cuda.synchronize(self._awaited)
            self.seconds[name] += time.perf_counter() - start

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds by stage since `seconds` was `before`."""
        return {stage: seconds - before.get(stage, 0.0) for stage, seconds in self.seconds.items()}

    def metrics(self, wall_seconds: float) -> dict[str, float]:
        """Milliseconds of each stage of a step, and of the whole step, of which all took so many seconds."""
        steps = max(self.steps, 1)
        metrics = {f"perf/{name}_ms": 1000 * seconds / steps for name, seconds in self.seconds.items()}
        metrics["perf/step_ms"] = 1000 * wall_seconds / steps
        metrics["perf/positions_per_s"] = self.positions / wall_seconds if wall_seconds else 0.0
        if self.padded_steps:
            metrics["perf/padded_share"] = 1 - self.trip_steps / self.padded_steps
        return metrics


class Clock:
    """Seconds between one lap and the next."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        before, self._start = self._start, time.perf_counter()
        return self._start - before
